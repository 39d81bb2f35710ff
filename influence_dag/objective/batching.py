"""What a model makes of every row, seen in two batchings: each row has to stand for itself."""

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.losses import ReducedLoss
from influence_dag.objective.rows import Rows

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective

Of = Literal["loss", "measurement"]

_BATCH = 1024
_OTHER = 0.6  # of the first batches' size: rows meet others, in another order
_SINGLE = 4  # rows that are also seen alone
_TOLERANCE = {torch.float64: 1e-9}  # relative, of losses and gradients in two batchings
_LOOSE = 1e-3  # the same in float32 and below


def check_all_rows(objective: "Objective", rows: Rows, *, of: Of = "loss") -> None:
    r"""Raise `ModelError` where the loss of a row depends on the batch, or is not finite.

    Two passes over all rows: in order, and in a random order in batches of another size. The loss
    of each row has to be the same in both, and so has the gradient of $\sum_i u_i L_i$ with
    random u, which also sees what couples rows without a trace in their losses. A loss that
    reduces a batch is compared with what its rows are given, on every batch of both passes.
    `of="measurement"` is of what test rows are asked for.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(len(rows), generator=generator, dtype=torch.float64).to(objective.params)
    orders = [torch.arange(len(rows)), rows.shuffled(generator)]
    size = min(_BATCH, max(1, len(rows)))
    sizes = [size, max(1, int(_OTHER * size))]
    passes = [
        _pass(objective, rows, order.to(u.device), size, u, of)
        for order, size in zip(orders, sizes, strict=True)
    ]
    (first, first_gradient), (second, second_gradient) = passes
    _check_finite(first)
    alone = [_losses(objective, row, None, of)[0] for row in rows[:_SINGLE].batches(1)]
    _check_equal(objective, first[:_SINGLE], torch.cat(alone))
    _check_equal(objective, first, second)
    _check_gradients(objective, first_gradient, second_gradient)


def _pass(
    objective: "Objective", rows: Rows, order: Tensor, size: int, u: Float[Tensor, " n"], of: Of
) -> tuple[Float[Tensor, " n"], Float[Tensor, " p"]]:
    """The loss of every row, and the gradient of their random combination."""
    values, gradient = torch.empty_like(u), torch.zeros_like(objective.params)
    for index in order.split(size):
        losses, part = _losses(objective, rows[index], u[index], of)
        values[index] = losses.to(values.dtype)
        gradient += part
    return values, gradient


def _losses(
    objective: "Objective", rows: Rows, u: Float[Tensor, " b"] | None, of: Of
) -> tuple[Float[Tensor, " b"], Any]:
    theta = objective.params.clone().requires_grad_(u is not None)
    with torch.set_grad_enabled(u is not None):
        outputs = objective.outputs(theta, rows.x)
        loss = objective.measurement if of == "measurement" else None
        loss = loss or objective.loss
        values = loss(outputs, rows.y)
        if isinstance(loss, ReducedLoss):
            loss.check(outputs, rows.y, rows.weights, tolerance=_tolerance(objective))
    if u is None:
        return values.detach(), None
    if not values.requires_grad:  # a batch of which no row depends on θ
        return values.detach(), torch.zeros_like(theta)
    (gradient,) = torch.autograd.grad((u * values).sum(), theta)
    return values.detach(), gradient


def _tolerance(objective: "Objective") -> float:
    return _TOLERANCE.get(objective.dtype, _LOOSE)


def _check_equal(objective: "Objective", first: Tensor, second: Tensor) -> None:
    scale = first.abs() + first.abs().mean() + 1e-2
    differs = (first - second).abs() > _tolerance(objective) * scale
    if differs.any():
        row = int(differs.nonzero()[0])
        raise ModelError(
            "the loss of a row depends on the other rows of its batch (largest difference "
            f"{(first - second).abs().max():.1e}, first at row {row}); every row has to stand for "
            "itself",
            row=row,
        )


def _check_gradients(objective: "Objective", first: Tensor, second: Tensor) -> None:
    difference, scale = float((first - second).norm()), float(first.norm())
    if not math.isfinite(scale):
        raise ModelError(
            "the gradients of the rows' losses are not finite, though the losses are: look at the "
            "size of the inputs, and for roots, logarithms and divisions at 0"
        )
    if not difference <= _tolerance(objective) * 10 * scale:
        raise ModelError(
            "the gradient of a row's loss depends on the other rows of its batch (relative "
            f"difference {difference / scale:.1e} between two batchings), though the loss itself "
            "does not; every row has to stand for itself"
        )


def _check_finite(values: Float[Tensor, " n"]) -> None:
    bad = (~torch.isfinite(values)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"the loss of row {int(bad[0])} is {values[bad[0]].item()} "
            f"({len(bad)} of {len(values)} rows are not finite); look at its inputs, "
            "and whether the model has diverged",
            row=int(bad[0]),
        )
