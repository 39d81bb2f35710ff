"""Which slot each row has after an edit: its own, a hole's, or a new one at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from influence_dag.datasets.slots import HOLE, STRING, Axis, kept_name, slots_of
from influence_dag.errors import DataError
from influence_dag.study.base import Split


@dataclass(frozen=True)
class AxisChange:
    """What happened to the rows of an axis since the version before."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def assign_slots(
    previous: Axis | None,
    ids: np.ndarray,
    keys: np.ndarray,
    labels: np.ndarray | None,
    kept: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[Axis, np.ndarray, AxisChange]:
    """Give every row a slot: its old one, else a hole, else a new one at the end.

    Returns the new axis, `source[slot]` (the row's position in the file, −1 for a hole) and
    what changed. Above 25 % holes the axis is compacted into file order.
    """
    if previous is None:
        raise ValueError("a first axis is made with `fresh_axis`")
    slot_of = slots_of(ids, previous.ids)
    known = slot_of >= 0
    was_valid = np.zeros(len(ids), bool)
    was_valid[known] = previous.valid[slot_of[known]]
    changed = int((previous.keys[slot_of[was_valid]] != keys[was_valid]).sum())
    removed = previous.count - int(was_valid.sum())
    added = int((~was_valid).sum())
    taken = np.zeros(len(previous), bool)
    taken[slot_of[known]] = True
    holes = np.flatnonzero(~taken)
    new = np.flatnonzero(~known)
    reused = min(len(holes), len(new))
    slot_of[new[:reused]] = holes[:reused]
    size = len(previous) + len(new) - reused
    slot_of[new[reused:]] = np.arange(len(previous), size)
    change = AxisChange(added, changed, removed)
    if size - len(ids) > size // 4:
        axis, source = fresh_axis(previous.name, ids, keys, labels, kept)
        return axis, source, change
    source = np.full(size, -1, np.int64)
    source[slot_of] = np.arange(len(ids))
    return _axis_from_source(previous, ids, keys, labels, kept, source), source, change


def fresh_axis(
    name: Split,
    ids: np.ndarray,
    keys: np.ndarray,
    labels: np.ndarray | None,
    kept: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[Axis, np.ndarray]:
    """An axis in file order without holes, and the identity as its source."""
    return Axis(name, ids.astype(STRING), keys, labels, kept=_plain(kept)), np.arange(len(ids))


def _axis_from_source(previous: Axis, ids, keys, labels, kept, source: np.ndarray) -> Axis:
    present = source >= 0
    if len(ids) == len(source) and bool((source == np.arange(len(source))).all()):
        slot_ids = ids.astype(STRING, copy=False)
    else:
        slot_ids = np.empty(len(source), STRING)
        slot_ids[: len(previous)] = previous.ids
        slot_ids[present] = ids[source[present]].astype(STRING)
    slot_keys = np.full(len(source), HOLE)
    slot_keys[present] = keys[source[present]]
    slot_labels = None if labels is None else _by_slot(labels, source)
    slot_kept = {name: _by_slot(values, source) for name, values in _plain(kept).items()}
    return Axis(previous.name, slot_ids, slot_keys, slot_labels, present, slot_kept)


def _by_slot(values: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Values by slot; holes have 0, False or an empty text."""
    present = source >= 0
    slots = np.zeros(len(source), values.dtype)
    slots[present] = values[source[present]]
    return slots


def _plain(kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns under the names that their coordinates have, text of variable width.

    Raises `DataError` for two that would have one name.
    """
    columns: dict[str, str] = {}
    for column in kept:
        if (other := columns.setdefault(kept_name(column), column)) != column:
            raise DataError(
                f"the columns {other!r} and {column!r} would travel along under one name, "
                f"{kept_name(column)}; rename one, or name those to keep in data.keep"
            )
    return {
        kept_name(name): values.astype(STRING) if values.dtype.kind in "OU" else values
        for name, values in kept.items()
    }
