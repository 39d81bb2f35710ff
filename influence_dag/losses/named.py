"""Losses of one value per sample, `(output, target) → (batch,)`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from influence_dag.errors import ModelError
from influence_dag.structures import described

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]

_LARGEST = 80  # exponent of which float32 has the power of e, and 1 is beyond float64's digits
IGNORED = -100  # the class index that torch leaves out of means


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample, from logits.

    Targets are class indices of any integer type, whole floats or booleans, `(batch,)` or
    `(batch, 1)`, or probabilities of the classes in the output's shape. Further positions
    `(batch, classes, …)` are averaged, those with the target -100 left out; a sample of which
    nothing is left has loss 0.
    """
    target = class_targets(output, target)
    if target.is_floating_point():
        values = F.cross_entropy(output, target, reduction="none")
        return values.reshape(len(values), -1).mean(1)
    values = class_losses(output, target, IGNORED)
    if values.ndim == 1:
        return values
    return mean_of_labelled(values, target != IGNORED)


def class_losses(
    output: Float[Tensor, "n classes ..."], target: Int[Tensor, "n ..."], ignored: int
) -> Float[Tensor, "n ..."]:
    r"""$-\log p_y = \log(1 + \sum_{j \ne y} e^{z_j - z_y})$; 0 where the target is ignored.

    Its gradient in $z_y$ is minus the sum of the others', to all their digits where p is almost 1;
    of `torch.nn.functional.cross_entropy` it is $p_y - 1$, rounding alone there.
    """
    labelled = target != ignored
    own = torch.where(labelled, target, 0).unsqueeze(1)
    others = output - output.gather(1, own)
    others = others.scatter(1, own, torch.finfo(output.dtype).min).logsumexp(1)
    return softplus(others).masked_fill(~labelled, 0.0)


def coin_losses(output: Tensor, target: Tensor) -> Tensor:
    r"""Binary cross-entropy from logits z, $y \log(1 + e^{-z}) + (1 - y) \log(1 + e^z)$.

    With gradients to all their digits, as `class_losses`.
    """
    return target * softplus(-output) + (1 - target) * softplus(output)


def softplus(values: Tensor) -> Tensor:
    """Log(1 + e^x), of large x as well, where torch's is x by default."""
    return F.softplus(values, threshold=_LARGEST)


def next_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each token of a sample given those before it, averaged.

    Logits `(batch, tokens, positions)` and the tokens `(batch, positions)` themselves, as language
    models of `transformers` are given them for labels: the logits at a position are held against
    the token after it. Tokens -100 are left out.
    """
    if output.ndim != 3 or target.shape != (len(output), output.shape[2]):
        raise ModelError(
            f"next_token: the model returns {tuple(output.shape)}, the targets are "
            f"{tuple(target.shape)}; wanted logits (rows, tokens, positions) and (rows, positions)"
        )
    return cross_entropy(output[:, :, :-1], target[:, 1:])


def mean_of_labelled(values: Tensor, labelled: Tensor) -> Tensor:
    """The mean over each sample's positions that have a label; 0 where none has."""
    count = labelled.flatten(1).sum(1)
    return values.flatten(1).sum(1) / count.clamp(min=1)


def check_real(target: Tensor) -> None:
    """A `ModelError` for complex targets, of which a conversion keeps the real part alone."""
    if target.is_complex():
        raise ModelError(
            f"the targets are {described(target)}; this loss takes real numbers, and a conversion "
            "would drop the imaginary part: hand over labels.real, or both parts "
            "(torch.view_as_real) as two outputs' targets"
        )


def class_targets(output: Tensor, target: Tensor) -> Tensor:
    """Class indices as int64 in the shape that torch wants, or probabilities as they are."""
    check_real(target)
    if target.is_floating_point() and target.shape == output.shape:
        return target.to(output.dtype)
    wanted = (*output.shape[:1], *output.shape[2:])
    if target.shape == (*wanted, 1):
        target = target.squeeze(-1)
    return target.long()


def softmax_weights(loss: LossFunction, output: Tensor, target: Any) -> Tensor | None:
    r"""The w of each row's curvature in its outputs, $w (\mathrm{diag}(p) - p p^\top)$.

    Of cross-entropy with one class a row it is 1, and 0 where none counts; None for other losses.
    """
    if loss is not cross_entropy or output.ndim != 2 or not isinstance(target, Tensor):
        return None
    classes = class_targets(output, target)
    if classes.is_floating_point() or classes.ndim != 1:
        return None
    return (classes != IGNORED).to(output.dtype)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the outputs of the squared error of each sample (torch's convention)."""
    values = (output - number_targets("mse", output, target)).square()
    return values.reshape(len(output), -1).mean(1)


def bce_with_logits(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the outputs of the binary cross-entropy of each sample, from logits."""
    target = number_targets("bce_with_logits", output, target)
    values = coin_losses(output, target)
    return values.reshape(len(output), -1).mean(1)


def number_targets(name: str, output: Tensor, target: Tensor) -> Tensor:
    """Targets in the shape and type of the outputs.

    (batch, 1) against (batch,) is what a regression usually has: torch would broadcast it to
    (batch, batch) and go on. So axes of length 1 do not count, and one side may be flat, row-major.
    `ModelError` where a sample has another number of targets, or as many in axes of other lengths:
    which output each of these belongs to is not to be seen.
    """
    check_real(target)
    if len(output) != len(target) or output[0].numel() != target[0].numel():
        raise ModelError(
            f"{name}: the model returns {output[0].numel()} numbers a sample "
            f"{tuple(output.shape)}, the target has {target[0].numel()} {tuple(target.shape)}; "
            "each target needs an output"
        )
    axes = [[size for size in each.shape[1:] if size != 1] for each in (output, target)]
    if axes[0] != axes[1] and min(map(len, axes)) > 1:
        raise ModelError(
            f"{name}: the model returns {tuple(output.shape)}, the target is "
            f"{tuple(target.shape)}: as many numbers a sample, in axes of other lengths; bring "
            "the target's axes into the order of the output's (permute, movedim)"
        )
    return target.reshape(output.shape).to(output.dtype)


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "next_token": next_token,
}


def per_sample_loss(loss: str | LossFunction) -> LossFunction:
    """The loss of that name, or the callable itself: `(output, target) → (batch,)`."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ModelError(
            f"unknown loss {loss!r}; known are {', '.join(LOSSES)}, or pass a callable "
            "(output, target) -> one value per sample"
        )
    return LOSSES[loss]
