"""What changed between two versions of an artifact: rows, blocks, attributes, values."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.fingerprints import fingerprint
from influence_dag.store.layout import ChunkIndex, Variable
from influence_dag.store.plans import carried_keys, chunk_indices, is_outdated

if TYPE_CHECKING:
    from influence_dag.store.protocol import Version

Positions = NDArray[np.intp]
Places = tuple[Positions, ...]


@dataclass(frozen=True)
class Change:
    """One entry of an array, named by its labels, before and after."""

    labels: dict[str, Any]
    before: float
    after: float

    @property
    def size(self) -> float:
        return abs(self.after - self.before)


@dataclass(frozen=True, eq=False)
class Difference:
    """From one version to another; nothing is read before it is asked for."""

    before: "Version"
    after: "Version"

    @cached_property
    def chunks(self) -> dict[str, list[ChunkIndex]]:
        """For each variable of the later version, its chunks that the earlier one did not have."""
        chunks = {}
        for name, variable in self.after.variables.items():
            earlier = carried_keys(self.before, variable)
            chunks[name] = chunk_indices(is_outdated(self.after.keys(name), earlier))
        return chunks

    @cached_property
    def added(self) -> dict[str, list[Any]]:
        """Labels that are new, for each labelled dimension; slots without a row aside."""
        return {
            dim: _beyond(labels, self._old_labels.get(dim, []))
            for dim, labels in self._new_labels.items()
        }

    @cached_property
    def removed(self) -> dict[str, list[Any]]:
        """Labels that are gone."""
        return {
            dim: _beyond(labels, self._new_labels.get(dim, []))
            for dim, labels in self._old_labels.items()
        }

    @cached_property
    def changed(self) -> dict[str, list[Any]]:
        """Labels that both versions have, whose content hash (coordinate `<dim>_key`) differs."""
        changed = {}
        for dim in self._new_labels:
            old, new = (_row_keys(version, dim) for version in (self.before, self.after))
            changed[dim] = [label for label, key in new.items() if old.get(label, key) != key]
        return changed

    @cached_property
    def attrs(self) -> dict[str, tuple[Any, Any]]:
        """Attributes that differ, with both values; None where there is none."""
        old, new = self.before.attrs, self.after.attrs
        pairs = {name: (old.get(name), new.get(name)) for name in sorted({*old, *new})}
        return {
            k: pair for k, pair in pairs.items() if fingerprint(pair[0]) != fingerprint(pair[1])
        }

    def largest_changes(self, variable: str, count: int = 10) -> list[Change]:
        """The entries that moved most, largest first, among labels that both versions have.

        Reads the changed chunks, one at a time. Entries that are NaN in either version, and those
        that did not move, are left out. An axis that only one version has (several λ, of which the
        other has one) is compared where the other's attribute of that name says, else nowhere.
        """
        if variable not in self.chunks:
            known = ", ".join(self.chunks) or "none"
            raise StoreError(f"no variable {variable!r} in the later version; it has {known}")
        changes = (
            change
            for index in self.chunks[variable]
            for change in self._chunk_changes(self.after.variables[variable], index, count)
        )
        return heapq.nlargest(count, changes, key=lambda change: change.size)

    def _chunk_changes(self, variable: Variable, index: ChunkIndex, count: int) -> Iterator[Change]:
        new_places, old_places = self._compared(variable, index)
        if not all(map(len, (*new_places, *old_places))):
            return
        new = self._read(self.after, variable.name, new_places)
        old = self._read(self.before, variable.name, old_places).reshape(new.shape)
        size = np.nan_to_num(np.abs(new - old), nan=0.0)
        few = min(count, size.size)
        for flat in np.argpartition(size, -few, axis=None)[-few:] if few else ():
            entry = np.unravel_index(flat, size.shape)
            if size[entry]:
                positions = [int(axis[i]) for axis, i in zip(new_places, entry, strict=True)]
                labels = {
                    dim: self._new_labels[dim][position] if dim in self._new_labels else position
                    for dim, position in zip(variable.dims, positions, strict=True)
                }
                yield Change(labels, float(old[entry]), float(new[entry]))

    def _compared(self, variable: Variable, index: ChunkIndex) -> tuple[Places, Places]:
        """Positions along each axis of a chunk that both versions have: in the later, the earlier.

        Along an axis that one of them lacks, the one place, if any, that the other one is of.
        """
        earlier = self.before.variables.get(variable.name)
        if earlier is None:
            return (), (np.zeros(0, np.intp),)
        region = dict(zip(variable.dims, variable.region(index), strict=True))
        matched = {dim: self._matched(dim, region[dim]) for dim in region if dim in earlier.dims}
        new = {
            dim: _place_of(self.before.attrs.get(dim), self._new_labels.get(dim, []), region[dim])
            for dim in region.keys() - matched.keys()
        }
        old = {
            dim: _place_of(self.after.attrs.get(dim), self._old_labels.get(dim, []))
            for dim in earlier.dims
            if dim not in region
        }
        new |= {dim: places for dim, (places, _) in matched.items()}
        old |= {dim: places for dim, (_, places) in matched.items()}
        return tuple(new[dim] for dim in variable.dims), tuple(old[dim] for dim in earlier.dims)

    def _matched(self, dim: str, part: slice) -> tuple[Positions, Positions]:
        """Positions along a dimension of what both versions have: in the later, in the earlier."""
        new = np.arange(part.start, part.stop)
        if dim in self._new_labels and dim in self._old_labels:
            old = np.array(
                [self._old_positions[dim].get(self._new_labels[dim][i], -1) for i in new]
            )
        else:
            length = self._old_sizes.get(dim, 0)
            old = np.where(new < length, new, -1)
        return new[old >= 0], old[old >= 0]

    @staticmethod
    def _read(version: "Version", variable: str, places: Places) -> NDArray[np.float64]:
        array = version.array(variable)
        return np.asarray(array.oindex[places] if places else array[...], np.float64)

    @cached_property
    def _old_labels(self) -> dict[str, list[Any]]:
        return _labels(self.before)

    @cached_property
    def _new_labels(self) -> dict[str, list[Any]]:
        return _labels(self.after)

    @cached_property
    def _old_positions(self) -> dict[str, dict[Any, int]]:
        return {
            dim: {label: position for position, label in enumerate(labels) if label != ""}
            for dim, labels in self._old_labels.items()
        }

    @cached_property
    def _old_sizes(self) -> dict[str, int]:
        pairs = (zip(v.dims, v.shape, strict=True) for v in self.before.variables.values())
        return {dim: length for pair in pairs for dim, length in pair}


def _place_of(value: Any, labels: list[Any], within: slice = slice(None)) -> Positions:
    """Where a value stands among labels: one place, or none."""
    places = range(*within.indices(len(labels)))
    return np.array([k for k in places if labels[k] == value], np.intp)


def _labels(version: "Version") -> dict[str, list[Any]]:
    """The labels of each dimension that has some; "" where `<dim>_valid` says that no row is."""
    labels, known = {}, version.coordinates
    for dim in sorted({*known} & version.sizes.keys()):
        names, valid = version.coordinate(dim).tolist(), f"{dim}_valid"
        there = version.coordinate(valid).tolist() if valid in known else [True] * len(names)
        # Ids are compared as text: they may be whole numbers in one version alone.
        shown = map(str, names) if valid in known else names
        labels[dim] = [x if ok else "" for x, ok in zip(shown, there, strict=True)]
    return labels


def _row_keys(version: "Version", dim: str) -> dict[Any, int]:
    """Label → content hash of the rows that a version has along a dimension, holes aside."""
    if f"{dim}_key" not in version.coordinates:
        return {}
    labels, keys = version.coordinate(dim).tolist(), version.coordinate(f"{dim}_key").tolist()
    return {str(label): key for label, key in zip(labels, keys, strict=True) if key}  # 0: a hole


def _beyond(labels: list[Any], others: list[Any]) -> list[Any]:
    """The labels that the others lack, in order."""
    known = {*others, ""}
    return [label for label in labels if label not in known]
