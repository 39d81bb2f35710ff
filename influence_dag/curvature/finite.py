"""No curvature leaves its kernel without numbers: LAPACK turns NaN into numbers, silently."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from influence_dag.errors import ModelError

if TYPE_CHECKING:
    from influence_dag.objective.objective import Objective, Rows

_SAID = (
    "the loss has no finite second derivative: it has none there (a root or a norm of zeros, a "
    "logarithm of 0) or overflows; look at its inputs, scale the columns, or compute in float64"
)


def all_finite(values: Tensor) -> bool:
    """Whether every entry is: a finite sum has no other terms, and costs a tenth of a look at each.

    A sum that overflows says nothing, so each is looked at.
    """
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def check_finite(what: str, values: Tensor) -> None:
    """Raise `ModelError` for numbers, of whatever was made from all rows, that are not finite."""
    if all_finite(values):
        return
    count = int((~values.isfinite()).sum())
    raise ModelError(
        f"{what}: {count} of {values.numel()} entries are not finite: the loss has no second "
        "derivative at some training row, or overflows; look at rows with extreme features, scale "
        "the columns, or compute in float64"
    )


def check_sum(
    total: Tensor, objective: "Objective", rows: "Rows", of_rows: "Callable[[Rows], Tensor]"
) -> None:
    """Raise `ModelError` for a sum over rows that is not finite, with the first row to show it.

    `of_rows` is the sum over some of them.
    """
    if all_finite(total):
        return None
    row = _first(rows, lambda some: not all_finite(of_rows(some)))
    if row is None:  # each is finite: their sum is too large
        return check_finite(f"the curvature of {type(objective.module).__name__}", total)
    raise _at(row)


def check_rows(values: Tensor, first: int) -> None:
    """Raise `ModelError` naming the first row whose values are not finite, `first` being added."""
    bad = (~values.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise _at(first + int(bad[0]))


def _at(row: int) -> ModelError:
    return ModelError(f"row {row}: {_SAID}", row=row)


def _first(rows: Any, is_bad: Callable[[Any], bool]) -> int | None:
    """The position of the first row that is bad, by halves."""
    start, stop = 0, len(rows)
    if not is_bad(rows):
        return None
    while stop - start > 1:
        middle = (start + stop) // 2
        if is_bad(rows[start:middle]):
            stop = middle
        elif is_bad(rows[middle:stop]):
            start = middle
        else:
            return None
    return start
