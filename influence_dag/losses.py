"""Losses of one value per sample, `(output, target) → (batch,)`."""

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from influence_dag.errors import ModelError

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample; further output positions `(batch, classes, …)` are averaged."""
    values = nn.functional.cross_entropy(output, target, reduction="none")
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the outputs of the squared error of each sample (torch's convention)."""
    _same_size("mse", output, target)
    return (output - target.reshape(output.shape)).square().reshape(len(output), -1).mean(1)


def bce_with_logits(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the outputs of the binary cross-entropy of each sample, from logits."""
    _same_size("bce_with_logits", output, target)
    target = target.reshape(output.shape).to(output.dtype)
    values = nn.functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    return values.reshape(len(output), -1).mean(1)


def _same_size(name: str, output: Tensor, target: Tensor) -> None:
    # (batch, 1) against (batch,) is what a regression usually has: torch would broadcast it to
    # (batch, batch) and go on.
    if output[0].numel() != target[0].numel():
        raise ModelError(
            f"{name}: the model returns {output[0].numel()} numbers a sample "
            f"{tuple(output.shape)}, the target has {target[0].numel()} {tuple(target.shape)}"
        )


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
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


def reduced_loss(loss: LossFunction) -> LossFunction:
    """A torch-style loss that returns one number for a batch, made one value per sample.

    Each sample is a batch of one, so `mean` and `sum` reductions agree. A loss that already
    returns one value per sample comes out unchanged.

    Class weights would cancel in a batch of one, where torch divides by the weight. So a loss
    module that has weights is asked for its values without reduction: sample i counts
    `w[y_i]` times, and the mean over n samples is divided by n, not by the sum of weights.

    >>> import torch
    >>> reduced_loss(nn.functional.mse_loss)(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    tensor([1., 9.])
    """
    if getattr(loss, "weight", None) is not None and hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        vars(loss)["reduction"] = "none"

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        value = loss(output.unsqueeze(0), target.unsqueeze(0))
        if value.numel() != 1:
            raise ModelError(
                f"the loss returns {tuple(value.shape)} for a batch of one; "
                "it has to reduce each sample to one number"
            )
        return value.reshape(())

    def of_each(output: Tensor, target: Tensor) -> Tensor:
        try:
            return vmap(of_one)(output, target)
        except RuntimeError:
            # A loss that looks at its values (`if (variance < 0).any()`): slow but right. An
            # error that has another cause comes again from here.
            return torch.stack([of_one(f, y) for f, y in zip(output, target, strict=True)])

    return of_each
