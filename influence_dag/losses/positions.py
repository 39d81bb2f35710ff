"""What each position of a sample adds to its loss: each token, each pixel, each step."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from influence_dag.errors import ModelError
from influence_dag.losses import named
from influence_dag.losses.reduced import ReducedLoss


def position_losses(loss: named.LossFunction, output: Any, target: Any) -> Float[Tensor, "n ..."]:
    """Terms whose sum over positions is the sample's loss; 0 where the target is ignored.

    A mean over k positions has terms of 1/k of each position's loss. Positions are the target's:
    a token is at its own place, also for `next_token`, whose first token has no loss.

    Raises `ModelError` for a loss of one's own, which has one value a sample, and for outputs that
    have no positions.
    """
    terms = _terms(loss, output, target)
    if terms is None:
        raise ModelError(
            f"the loss gives one value a sample, not one a position ({_named(loss)}); terms at "
            "positions are known of cross_entropy, next_token, mse, bce_with_logits and of torch's "
            "own losses with reduction 'mean' or 'sum'"
        )
    if terms.ndim < 2:
        raise ModelError(
            f"the model returns {tuple(output.shape)} for {len(output)} rows, one prediction a "
            "row, which has no positions; leave `positions` out"
        )
    return terms


def _terms(loss: named.LossFunction, output: Any, target: Any) -> Tensor | None:
    if loss is named.next_token:
        terms = _terms(named.cross_entropy, output[:, :, :-1], target[:, 1:])
        return None if terms is None else F.pad(terms, (1, 0))
    if loss is named.cross_entropy:
        target = named.class_targets(output, target)
        if target.is_floating_point():
            return _shared(F.cross_entropy(output, target, reduction="none"))
        values = named.class_losses(output, target, named.IGNORED)
        return _shared(values, target != named.IGNORED)
    if loss is named.mse:
        return _shared((output - named.number_targets("mse", output, target)).square())
    if loss is named.bce_with_logits:
        target = named.number_targets("bce_with_logits", output, target)
        return _shared(named.coin_losses(output, target))
    parts = loss.of_torch if isinstance(loss, ReducedLoss) else None
    if parts is None or parts.reduction == "none":
        return None
    values, labelled = parts.at_positions(output, target)
    return values if parts.reduction == "sum" else _shared(values, labelled)


def _shared(values: Float[Tensor, "n ..."], labelled: Tensor | None = None) -> Tensor:
    """The terms of the mean over each sample's positions that have a label."""
    if labelled is None:
        return values / values[0].numel()
    count = labelled.reshape(len(values), -1).sum(1).clamp(min=1)
    return torch.where(labelled, values, 0.0) / count.reshape(-1, *[1] * (values.ndim - 1))


def _named(loss: named.LossFunction) -> str:
    whole = loss.whole if isinstance(loss, ReducedLoss) else loss
    return getattr(whole, "__name__", type(whole).__name__)
