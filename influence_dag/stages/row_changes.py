"""Which rows a stored sum over rows has to lose and to gain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import HOLE, Axis
from influence_dag.stages.reading import load_rows
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

if TYPE_CHECKING:
    from influence_dag.objective import Rows


@dataclass(frozen=True, eq=False)
class RowChanges:
    """Rows that a sum holds and should not (`gone`, slots of `old`), and the other way round.

    `before` is the version of the dataset that still has what is gone.
    """

    old: Axis
    before: Version
    gone: np.ndarray
    new: Axis
    come: np.ndarray

    def __len__(self) -> int:
        return len(self.gone) + len(self.come)

    def signed(self, bench: Workbench) -> "Iterator[tuple[int, Rows]]":
        """−1 and the rows to subtract, 1 and the rows to add; nothing where there are none."""
        if len(self.gone):
            yield -1, load_rows(bench, self.old, self.gone, version=self.before)
        if len(self.come):
            yield 1, load_rows(bench, self.new, self.come)


def row_changes(bench: Workbench, stored: Version, seen: str, train: Axis) -> RowChanges | None:
    """From the rows that a stored sum was formed over, of fingerprint `seen`, to the current ones.

    None when all rows are to be summed: those it was formed over are no longer kept or damaged, or
    as many would be touched as there are.
    """
    kept = {version.number: version for version in bench.store.versions("dataset")}
    before = kept.get(stored.attrs.get("dataset_version", 0))
    if before is None or before.verify():
        return None
    old = bench.axis_of(before, "train")
    gone, come = (
        np.flatnonzero(one.valid & ~rows_of_both(one, other).valid)
        for one, other in ((old, train), (train, old))
    )
    changes = RowChanges(old, before, gone, train, come)
    return changes if old.fingerprint == seen and len(changes) < train.count else None


def rows_of_both(axis: Axis, other: Axis) -> Axis:
    """The axis without rows that the other one does not have, or has otherwise, at their slots."""
    theirs = np.full(len(axis), HOLE)
    both = min(len(axis), len(other))
    theirs[:both] = other.keys[:both]
    return Axis(axis.name, axis.ids, np.where(axis.keys == theirs, axis.keys, HOLE))
