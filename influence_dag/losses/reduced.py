r"""Losses that reduce a batch to one number, made one value per sample.

A torch-style loss is known by its values on batches. Row i is given $v_i$, its value on a batch
of that row alone, and the row's loss is $L_i = c_i v_i$ with the weight $c_i$ that the loss gives
it (1, or the class weight $w_{y_i}$ of torch's own losses). That this is what the loss means is
seen on every batch: its value has to be

$$ \sum_i c_i v_i / \sum_i c_i \quad\text{(a mean)} \qquad\text{or}\qquad \sum_i c_i v_i . $$

A loss for which it is neither weighs rows by something that its values on single rows do not show
(class weights in a function of one's own, positions that are ignored in some rows) and is refused.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from influence_dag.errors import ModelError
from influence_dag.losses import named
from influence_dag.losses.one_by_one import OneByOne, several
from influence_dag.structures import described

_ROUNDING = 100  # units
_OF_CLASSES = (F.cross_entropy, F.nll_loss)
_MODULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
}


_LIKELIHOODS = (
    (named.cross_entropy, "categorical"),
    (named.next_token, "categorical"),
    (F.cross_entropy, "categorical"),
    (named.bce_with_logits, "bernoulli"),
    (F.binary_cross_entropy_with_logits, "bernoulli"),
    (named.mse, "gaussian"),
    (F.mse_loss, "gaussian"),
)


def reduced_loss(loss: named.LossFunction) -> "ReducedLoss":
    """A torch-style loss that returns one number for a batch, made one value per sample.

    Torch's own losses, as modules, functions or `functools.partial` of those, are asked for
    their values without reduction; class weights multiply (sample i counts `w[y_i]` times, and
    the mean over n samples is divided by n, not by the sum of weights), and positions with the
    ignored index are left out of a sample's mean. Any other loss is called on batches of one.
    A loss that already returns one value per sample comes out unchanged.

    >>> import torch
    >>> reduced_loss(nn.functional.mse_loss)(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    tensor([1., 9.])
    """
    if isinstance(loss, ReducedLoss):
        return loss
    known = _torch_loss(loss)
    return ReducedLoss(loss, known or OneByOne(loss))


def ignored_class(loss: named.LossFunction) -> int | None:
    """The index that a loss of class indices leaves out; None for losses of other targets."""
    if loss is named.cross_entropy or loss is named.next_token:
        return named.IGNORED
    parts = loss.parts if isinstance(loss, ReducedLoss) else None
    if isinstance(parts, _TorchLoss) and parts.function in _OF_CLASSES:
        return parts.settings.get("ignore_index", named.IGNORED)
    return None


def likelihood_of(loss: named.LossFunction) -> str | None:
    """The distribution whose negative log-likelihood a known loss is; None for one's own."""
    function = loss
    if isinstance(loss, ReducedLoss):
        function = loss.of_torch.function if loss.of_torch else loss.whole
    return next((name for known, name in _LIKELIHOODS if known is function), None)


@dataclass(frozen=True, eq=False)
class ReducedLoss:
    """`(output, target) → (batch,)` from the loss `whole` of batches."""

    whole: named.LossFunction
    parts: "_TorchLoss | OneByOne"

    def __call__(self, output: Any, target: Any) -> Tensor:
        return self.parts.losses(output, target)

    @property
    def of_torch(self) -> "_TorchLoss | None":
        """What is known of one of torch's own losses, which take one tensor; None of others."""
        return self.parts if isinstance(self.parts, _TorchLoss) else None

    def check(self, output: Any, target: Any, weights: Tensor | None, *, tolerance: float) -> None:
        """Raise `ModelError` unless the batch's loss is a mean or sum of what its rows are given.

        With `weights` of rows, the mean that they weigh is right as well. Rows whose own loss is
        not finite are for others to refuse.
        """
        losses, shares = self.parts.shares(output, target)
        try:
            whole = self.parts.whole(output, target)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelError(
                f"the loss fails on a batch with targets {described(target)}: "
                f"{type(error).__name__}: {error}; torch wants class labels as int64 (n,) and "
                "numbers in the outputs' type and shape: convert them in the data or in the loss"
            ) from error
        if not shares.any():
            return  # rows without a label alone, of which torch's mean is 0 / 0
        if not losses.isfinite().all():
            return  # of a mean of that nothing can be told; who asks names the row
        if whole.shape == losses.shape:
            pairs = [(losses, losses.abs() + losses.abs().mean())]
        elif whole.numel() == 1:
            whole = whole.reshape(())
            pairs = list(_reductions(losses, shares, weights))
        else:
            raise ModelError(
                f"the loss returns {tuple(whole.shape)} for a batch of {len(losses)} rows; it has "
                "to return one number, or one a row"
            )
        rounding = _ROUNDING * torch.finfo(losses.dtype).eps  # of the logits behind small losses
        limits = [(found, tolerance * size + rounding) for found, size in pairs]
        if not any(bool(((found - whole).abs() <= limit).all()) for found, limit in limits):
            raise _weighs_rows(whole, pairs[0][0])


def _reductions(
    losses: Tensor, shares: Tensor, weights: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The means and sums that a batch's loss may be, each with that of the absolute values."""
    for w in [torch.ones_like(losses)] + ([] if weights is None else [weights.to(losses)]):
        total, size = (w * losses).sum(), (w * losses).abs().sum()
        yield total / (w * shares).sum(), size / (w * shares).sum()
        yield total, size


def _weighs_rows(whole: Tensor, found: Tensor) -> ModelError:
    seen = f"{whole.item():.6g}" if whole.numel() == 1 else "not that of its rows"
    mean = f", the mean of its rows' losses is {found.item():.6g}" if found.numel() == 1 else ""
    return ModelError(
        f"the loss of a batch is {seen}{mean}: it weighs rows in a way that their losses on their "
        "own do not show (class weights or ignored positions inside it, broadcasting of shapes "
        "that differ). Give a loss of one value a row (reduction='none'), torch's own loss with "
        "its `weight`, loss='cross_entropy' for the mean over each row's labelled positions, or "
        "the weights of rows beside them: batches (x, y, weights)"
    )


def _torch_loss(loss: Any) -> "_TorchLoss | None":
    """What is known of a loss of torch's: its function and its settings."""
    if isinstance(loss, functools.partial) and not loss.args:
        settings, function = dict(loss.keywords), loss.func
    else:
        settings, function = {}, loss
    if isinstance(function, nn.Module) and not settings:
        return _of_module(function)
    if function not in _MODULES.values() or {"reduce", "size_average"} & settings.keys():
        return None
    reduction = settings.pop("reduction", "mean")
    return _TorchLoss(function, settings, reduction)


def _of_module(module: nn.Module) -> "_TorchLoss | None":
    function = _MODULES.get(type(module))
    if function is None or _is_changed(module):
        return None
    accepted = inspect.signature(function).parameters
    settings = {
        name: getattr(module, name)
        for name in ("weight", "ignore_index", "label_smoothing", "pos_weight", "beta", "delta")
        if name in accepted and hasattr(module, name)
    }
    return _TorchLoss(function, settings, str(module.reduction))


def _is_changed(module: nn.Module) -> bool:
    """Whether this one is not what its class is: by hooks, or a `forward` of its own."""
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


@dataclass(frozen=True, eq=False)
class _TorchLoss:
    """A loss of torch's without reduction, averaged over what a sample has of positions."""

    function: Callable[..., Tensor]
    settings: dict[str, Any]
    reduction: str

    def losses(self, output: Any, target: Any) -> Tensor:
        return self.shares(output, target)[0]

    def shares(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """$L_i = c_i v_i$ and the weights $c_i$ of the rows among the batch's."""
        values, labelled = self.at_positions(output, target)
        if labelled is None or self.reduction != "mean":
            losses = self._one_a_row(values)
            return losses, torch.ones_like(losses)
        if labelled.ndim == 1:
            values, labelled = values[:, None], labelled[:, None]
        weights = self._weights(output, target, labelled, values)
        return named.mean_of_labelled(values, labelled), weights

    def at_positions(self, output: Any, target: Any) -> tuple[Tensor, Tensor | None]:
        """The loss at each position, and which positions count; None: all."""
        values, target = self._evaluated(output, target, "none")
        if self.function not in _OF_CLASSES or target.is_floating_point():
            return values, None
        return values, target != self.settings.get("ignore_index", named.IGNORED)

    def _weights(self, output: Any, target: Any, labelled: Tensor, like: Tensor) -> Tensor:
        weight = self.settings.get("weight")
        if weight is None:
            return labelled.flatten(1).any(1).to(like)
        classes = named.class_targets(output, target).reshape(labelled.shape)
        of_classes = weight.to(like)[torch.where(labelled, classes, 0)]
        return named.mean_of_labelled(torch.where(labelled, of_classes, 0.0), labelled)

    def whole(self, output: Any, target: Any) -> Tensor:
        return self._evaluated(output, target, self.reduction)[0]

    def _one_a_row(self, values: Tensor) -> Tensor:
        if self.reduction == "none" and values[0].numel() != 1:
            raise several(values[:1])
        flat = values.reshape(len(values), -1)
        return flat.sum(1) if self.reduction == "sum" else flat.mean(1)

    def _evaluated(self, output: Any, target: Any, reduction: str) -> tuple[Tensor, Tensor]:
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            raise ModelError(
                f"the model returns a {described(output)} and the target is a {described(target)}; "
                "torch's losses take one tensor each: write a loss of your own, for example "
                "lambda output, target: F.cross_entropy(output['logits'], target)"
            )
        if self.function in _OF_CLASSES:
            target = named.class_targets(output, target)
        else:
            target = named.number_targets(self.function.__name__, output, target)
        settings = {
            name: value.to(output) if isinstance(value, Tensor) else value
            for name, value in self.settings.items()
        }
        values = self._from_logits(output, target, settings) if reduction == "none" else None
        if values is None:
            values = self.function(output, target, **settings, reduction=reduction)
        return values, target

    def _from_logits(
        self, output: Tensor, target: Tensor, settings: dict[str, Any]
    ) -> Tensor | None:
        """Values whose gradients have all their digits; None for losses of another kind."""
        if self.function is F.binary_cross_entropy_with_logits and not any(
            each is not None for each in settings.values()
        ):
            return named.coin_losses(output, target)
        is_index = not target.is_floating_point()
        if self.function is not F.cross_entropy or not is_index or settings.get("label_smoothing"):
            return None
        ignored, weight = settings.get("ignore_index", named.IGNORED), settings.get("weight")
        values = named.class_losses(output, target, ignored)
        if weight is None:
            return values
        return values * weight[torch.where(target != ignored, target, 0)]
