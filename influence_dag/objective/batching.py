"""What a model makes of every row, seen in two batchings: each row has to stand for itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.losses import LossFunction, ReducedLoss
from influence_dag.objective.footprint import rows_in_cache
from influence_dag.objective.rows import Rows
from influence_dag.structures import tensors_of, with_tensors

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective

Of = Literal["loss", "measurement"]

_BATCH = 1024
_OTHER = 0.6  # of the first batches' size: rows meet others, in another order
_SINGLE = 4  # rows that are also seen alone
_TOLERANCE = 1e-9  # relative, of losses in two batchings; ten times that of their gradients
_INSIDE = 2e-5  # the same of a copy in float64 of a model that may compute some parts in float32
_LOOSE = 1e-3  # the same in float32 and below


def check_all_rows(
    objective: "Objective",
    rows: Rows,
    *,
    of: Of = "loss",
    in_float64: "Callable[[], Objective] | None" = None,
) -> None:
    r"""Raise `ModelError` where the loss of a row depends on the batch, or is not finite.

    Two passes over all rows: in order, and in a random order in batches of another size. The loss
    of each row has to be the same in both, and so has the gradient of $\sum_i u_i L_i$ with
    random u, which also sees what couples rows without a trace in their losses. A loss that
    reduces a batch is compared with what its rows are given, on every batch of both passes.
    `of="measurement"` is of what test rows are asked for.

    A model in float32 is looked at in a copy in float64, where it can be one: its own rounding
    would hide what couples rows a little. `in_float64` makes it, or has it from before.
    """
    few, looked_at, tolerance = rows[:2].to(dtype=objective.dtype), objective, _TOLERANCE
    if objective.dtype != torch.float64:
        double = _precise(in_float64 or objective.in_float64, few, of)
        looked_at, tolerance = double or objective, _INSIDE if double else _LOOSE
    few = few.to(dtype=looked_at.dtype)
    most = rows_in_cache(looked_at, few, min(_BATCH, max(1, len(rows))), of=of)
    _Check(looked_at, of, tolerance, most).over(rows)


def _precise(copied: "Callable[[], Objective]", rows: Rows, of: Of) -> "Objective | None":
    """A copy in float64; None where the model or its loss does not work in it."""
    try:
        double = copied()
        few, loss = rows.to(dtype=torch.float64), _asked(double, of)
        outputs = double.outputs(double.params, few.x)
        values = loss(outputs, few.y)
        if isinstance(loss, ReducedLoss):
            values = values.sum() + loss.parts.whole(outputs, few.y).sum()
    except Exception:  # whatever a model of the caller's raises when its dtype changes
        return None
    return double if values.dtype == torch.float64 else None


def _asked(objective: "Objective", of: Of) -> LossFunction:
    return (objective.measurement if of == "measurement" else None) or objective.loss


@dataclass(frozen=True)
class _Check:
    """The two passes, in the objective's own precision."""

    objective: "Objective"
    of: Of
    tolerance: float
    most: int  # rows at once

    def over(self, rows: Rows) -> None:
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(len(rows), generator=generator, dtype=torch.float64)
        u = u.to(self.objective.params)
        orders = [torch.arange(len(rows)), rows.shuffled(generator)]
        sizes = [self.most, max(1, int(_OTHER * self.most))]
        (first, first_gradient), (second, second_gradient) = (
            self._pass(rows, order.to(u.device), size, u)
            for order, size in zip(orders, sizes, strict=True)
        )
        _check_finite(first, self.of)
        alone = [self._losses(row, None)[0] for row in rows[:_SINGLE].batches(1)]
        self._check_equal(first[:_SINGLE], torch.cat(alone))
        self._check_equal(first, second)
        self._check_gradients(first_gradient, second_gradient)

    def _pass(
        self, rows: Rows, order: Tensor, size: int, u: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " p"]]:
        """The loss of every row, and the gradient of their random combination."""
        values, gradient = torch.empty_like(u), torch.zeros_like(self.objective.params)
        for index in order.split(size):
            losses, part = self._losses(rows[index], u[index])
            values[index] = losses.to(values.dtype)
            gradient += part
        return values, gradient

    def _losses(self, rows: Rows, u: Float[Tensor, " b"] | None) -> tuple[Float[Tensor, " b"], Any]:
        rows = rows.to(dtype=self.objective.dtype)
        theta = self.objective.params.clone().requires_grad_(u is not None)
        with torch.set_grad_enabled(u is not None):
            outputs = self.objective.outputs(theta, rows.x)
            loss = _asked(self.objective, self.of)
            values = loss(outputs, rows.y)
            if isinstance(loss, ReducedLoss):
                loss.check(outputs, rows.y, rows.weights, tolerance=self.tolerance)
        if u is None:
            return values.detach(), None
        if not values.requires_grad:  # a batch of which no row depends on θ
            return values.detach(), torch.zeros_like(theta)
        with torch.enable_grad():  # whatever the caller's mode is
            (gradient,) = torch.autograd.grad((u * values).sum(), theta)
        return values.detach(), gradient

    def _check_equal(self, first: Tensor, second: Tensor) -> None:
        scale = first.abs() + first.abs().mean() + 1e-2
        differs = ~((first - second).abs() <= self.tolerance * scale)  # where one is NaN, too
        if differs.any():
            row = int(differs.nonzero()[0])
            raise ModelError(
                f"the {self.of} of a row depends on the other rows of its batch (largest "
                f"difference {(first - second).abs().max():.1e}, first at row {row}); every row "
                "has to stand for itself",
                row=row,
            )

    def _check_gradients(self, first: Tensor, second: Tensor) -> None:
        difference, scale = float((first - second).norm()), float(first.norm())
        if not math.isfinite(scale):
            raise ModelError(
                "the gradients of the rows' losses are not finite, though the losses are: look at "
                "the size of the inputs, and for roots, logarithms and divisions at 0"
            )
        if not difference <= self.tolerance * 10 * scale:
            raise ModelError(
                f"the gradient of a row's {self.of} depends on the other rows of its batch "
                f"(relative difference {difference / scale:.1e} between two batchings), though the "
                f"{self.of} itself does not; every row has to stand for itself"
            )


def _check_finite(values: Float[Tensor, " n"], of: Of) -> None:
    bad = (~torch.isfinite(values)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"the {of} of row {int(bad[0])} is {values[bad[0]].item()} "
            f"({len(bad)} of {len(values)} rows are not finite); look at its inputs, "
            "and whether the model has diverged",
            row=int(bad[0]),
        )


def check_axis_of_rows(objective: "Objective", one: Any, two: Any, target: Any) -> None:
    """Raise `ModelError` where outputs of one row and of two are not as many rows of them.

    A number without any axis has that of rows back already. `target` is of the two rows.
    """
    leaves = tensors_of(one), tensors_of(two)
    pairs = list(zip(*leaves, strict=False))
    for alone, pair in pairs:
        if pair.shape[:1] == (2,) and alone.shape not in (pair.shape, (1, *pair.shape[1:])):
            raise ModelError(
                f"the model returns {tuple(alone.shape)} for one row and {tuple(pair.shape)} for "
                "two: it loses the axis of rows, as squeeze() does; name the axis to take away, "
                "for example squeeze(-1)"
            )
    shared = [k for k, (a, b) in enumerate(pairs) if a.ndim and len(a) > 1 and a.shape == b.shape]
    if not shared or len(leaves[0]) != len(leaves[1]):
        return
    for what, loss in {"loss": objective.loss, "measurement": objective.measurement}.items():
        if isinstance(loss, ReducedLoss) and loss.of_torch is None:
            _check_unshared(what, loss, two, shared, target)


def _check_unshared(
    what: str, loss: ReducedLoss, outputs: Any, shared: list[int], target: Any
) -> None:
    """Refuse an output of all rows alike to a loss of batches of one.

    By its length alone it is told from one of rows: as many rows would share it among themselves.
    """
    leaves = [leaf.detach().clone() for leaf in tensors_of(outputs)]
    held = [leaves[k].requires_grad_() for k in shared if leaves[k].is_floating_point()]
    with torch.enable_grad():
        given = with_tensors(outputs, [leaf.clone() for leaf in leaves])  # it may work in place
        total = loss(given, target).sum()
    if not held or not total.requires_grad:
        return
    for leaf, slope in zip(held, torch.autograd.grad(total, held, allow_unused=True), strict=True):
        if slope is not None and slope.any():
            raise ModelError(
                f"the {what} takes an output of shape {tuple(leaf.shape)} that is the same for any "
                f"number of rows: of {len(leaf)} rows each would be given a part of it; let the "
                "model return it once a row (scale.expand(len(x), *scale.shape))"
            )
