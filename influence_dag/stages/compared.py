"""By how much two objectives differ on the same rows: outputs, losses, gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from influence_dag.objective.batching import Of
from influence_dag.objective.footprint import rows_in_cache
from influence_dag.objective.objective import Objective, Rows
from influence_dag.structures import tensors_of

FIRST = 8  # rows whose gradients are compared one by one


@dataclass(frozen=True, eq=False)
class Difference:
    """The largest of each row between two arrays, and the largest number of the first one.

    Of arrays of two shapes there are only these.
    """

    rows: Tensor
    scale: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Difference":
        shapes = tuple(one.shape), tuple(other.shape)
        if one.shape != other.shape:
            return cls(one.new_zeros(0), 0.0, shapes)
        difference = (one.double() - other.double()).abs().nan_to_num(torch.inf)
        difference[(one == other) | (one.isnan() & other.isnan())] = 0.0
        some = bool(one.numel())
        rows = difference.reshape(len(one), -1).amax(1) if some else one.new_zeros(len(one))
        scale = float(one.double().nan_to_num(0, 0, 0).abs().max()) if some else 0.0
        return cls(rows, scale, shapes)

    @classmethod
    def joined(cls, parts: "Sequence[Difference]") -> "Difference":
        """Of consecutive rows; of those of two shapes the first."""
        apart = next((part for part in parts if not part.is_of_one_shape), None)
        if apart is not None:
            return apart
        rows = torch.cat([part.rows for part in parts])
        return cls(rows, max(part.scale for part in parts), parts[0].shapes)

    @property
    def is_of_one_shape(self) -> bool:
        return self.shapes[0] == self.shapes[1]


Named: TypeAlias = list[tuple[str, Difference]]


@dataclass(frozen=True, eq=False)
class Both:
    """A fitted objective and one made anew, on the same rows: a pass each, batch by batch.

    Of outputs a batch is in memory. What follows from outputs of two shapes is not asked for.
    """

    fitted: Objective
    again: Objective
    rows: Rows
    batch_size: int

    def of_test_rows(self) -> Named:
        """Outputs and, where there are some, measurements."""
        found: list[Named] = []
        for batch in self._batches("measurement"):
            with torch.no_grad():
                outputs = [each.outputs(each.params, batch.x) for each in (self.fitted, self.again)]
                found.append(_of_leaves(outputs))
                measures = [self.fitted.measurement, self.again.measurement]
                if None not in measures and _is_of_one_shape(found[-1]):
                    pairs = zip(measures, outputs, strict=True)
                    values = [measure(f, batch.y) for measure, f in pairs if measure]
                    found[-1].append(("measurements", Difference.of(*values)))
        return _joined(found)

    def of_training_rows(self) -> tuple[Named, tuple[Tensor, Tensor]]:
        """Outputs, losses and gradients; and the fitted one's mean loss with its gradient."""
        found: list[Named] = []
        totals = [_Total.of(self.fitted), _Total.of(self.again)]
        for batch in self._batches("loss"):
            outputs = [total.outputs(batch) for total in totals]
            found.append(_of_leaves(outputs))
            if not _is_of_one_shape(found[-1]):
                return _joined(found), totals[0].mean(self.rows)
            losses = [total.add(f, batch) for total, f in zip(totals, outputs, strict=True)]
            found[-1].append(("losses", Difference.of(*losses)))
        means = [total.mean(self.rows) for total in totals]
        singles = [_of_first_rows(total.objective, self.rows) for total in totals]
        return [
            *_joined(found),
            ("gradients", Difference.of(*singles)),
            ("mean gradients", Difference.of(*(gradient[None] for _, gradient in means))),
        ], means[0]

    def _batches(self, of: Of) -> Iterator[Rows]:
        most = min(self.batch_size, len(self.rows))
        yield from self.rows.batches(rows_in_cache(self.fitted, self.rows[:2], most, of=of))


@dataclass(eq=False)
class _Total:
    """The sum of losses and of their gradients, over batches that are added."""

    objective: Objective
    theta: Tensor
    loss: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, objective: Objective) -> "_Total":
        theta = objective.params.detach()
        loss, gradient = torch.zeros_like(theta[0]), torch.zeros_like(theta)
        return cls(objective, theta.clone().requires_grad_(), loss, gradient)

    def outputs(self, rows: Rows) -> Any:
        return self.objective.outputs(self.theta, rows.x)

    def add(self, outputs: Any, rows: Rows) -> Tensor:
        """The loss of each row."""
        losses = self.objective.loss(outputs, rows.y)
        total = rows.weighted(losses).sum()
        if total.requires_grad:  # of a batch of which no row depends on θ it is zero
            self.gradient += torch.autograd.grad(total, self.theta)[0]
        self.loss += total.detach()
        return losses.detach()

    def mean(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return self.loss / rows.weight_sum, self.gradient / rows.weight_sum


def _of_leaves(outputs: Sequence[Any]) -> Named:
    """Of each tensor of two objectives' outputs."""
    pairs = zip(*map(tensors_of, outputs), strict=True)
    return [("outputs", Difference.of(one.detach(), other.detach())) for one, other in pairs]


def _is_of_one_shape(found: Named) -> bool:
    return all(difference.is_of_one_shape for _, difference in found)


def _joined(found: Sequence[Named]) -> Named:
    """Of consecutive batches, each with the same things in the same order, the last with fewer."""
    columns = zip(*found, strict=False)
    return [(column[0][0], Difference.joined([each for _, each in column])) for column in columns]


def _of_first_rows(objective: Objective, rows: Rows) -> Tensor:
    """The gradients of a few rows, one by one."""
    singles = []
    for row in rows[:FIRST].unweighted.batches(1):
        total = _Total.of(objective)
        total.add(total.outputs(row), row)
        singles.append(total.gradient)
    return torch.stack(singles)
