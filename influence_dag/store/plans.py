"""What has to be computed: the keys that blocks should have against those that are stored."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.fingerprints import Keys
from influence_dag.store.layout import ChunkIndex, Layout, Variable

if TYPE_CHECKING:
    from influence_dag.store.protocol import Version
    from influence_dag.store.published import StoredVersion

Expected = Mapping[str, Keys]
"""For each variable of a layout, the keys its chunks should have: `(*grid, 16)`."""


@dataclass(frozen=True)
class Plan:
    """The chunks that are not stored under their expected keys, and why.

    `reasons` counts them: `"not computed"` (new rows, another chunk size, first run), `"inputs
    changed"`, `"damaged"`. `layout_changed` says that coordinates or attributes differ.
    """

    outdated: dict[str, list[ChunkIndex]]
    reused: int
    layout_changed: bool
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def computed(self) -> int:
        return sum(map(len, self.outdated.values()))

    @property
    def up_to_date(self) -> bool:
        return not self.computed and not self.layout_changed


def make_plan(base: "StoredVersion | None", layout: Layout, expected: Expected) -> Plan:
    """Compare what a layout's chunks should be with what a version holds."""
    check_expected(layout, expected)
    outdated, reasons, reused = {}, Counter[str](), 0
    for variable in layout.variables:
        carried, damaged = carry(base, variable)
        stale = is_outdated(expected[variable.name], carried)
        known = is_present(carried)
        outdated[variable.name] = chunk_indices(stale)
        reused += int((~stale).sum())
        reasons["damaged"] += int((stale & damaged).sum())
        reasons["inputs changed"] += int((stale & known).sum())
        reasons["not computed"] += int((stale & ~known & ~damaged).sum())
    return Plan(
        outdated=outdated,
        reused=reused,
        layout_changed=base is None or not holds_layout(base, layout),
        reasons={reason: count for reason, count in reasons.items() if count},
    )


def carry(base: "StoredVersion | None", variable: Variable) -> tuple[Keys, NDArray[np.bool_]]:
    """Keys of a version's chunks that serve a new one as they are, and which were found damaged."""
    keys = carried_keys(base, variable)
    damaged = np.zeros(variable.grid, bool)
    if base is not None and is_present(keys).any():
        for damage in base.damaged_chunks(variable.name):
            assert damage.chunk is not None
            if all(i < n for i, n in zip(damage.chunk, variable.grid, strict=True)):
                keys[damage.chunk] = 0
                damaged[damage.chunk] = True
    return keys, damaged


def carried_keys(base: "Version | None", variable: Variable) -> Keys:
    """Keys of a version's chunks under another's shape, `(*grid, 16)`; zeros where none serves.

    Chunks at an edge that moved hold other rows than before, so they are left out whatever their
    key.
    """
    keys = variable.no_keys
    if base is None or not base.encodes_like(variable):
        return keys
    old_keys, old_shape = base.keys(variable.name), base.variables[variable.name].shape
    both = tuple(slice(min(sizes)) for sizes in zip(keys.shape, old_keys.shape, strict=True))
    keys[both] = old_keys[both]
    edges = zip(old_shape, variable.shape, variable.chunks, strict=True)
    for axis, (old, new, chunk) in enumerate(edges):
        if old != new and min(old, new) % chunk:
            np.moveaxis(keys, axis, 0)[min(old, new) // chunk] = 0
    return keys


def holds_layout(base: "StoredVersion", layout: Layout) -> bool:
    """Whether a version's coordinates and attributes are this layout's, undamaged."""
    return base.layout_fingerprint == layout.fingerprint and not base.damaged_files()


def is_present(keys: Keys) -> NDArray[np.bool_]:
    return np.asarray(keys.any(axis=-1))


def is_outdated(expected: Keys, actual: Keys) -> NDArray[np.bool_]:
    """Which chunks are not what they should be."""
    return is_present(expected != actual)


def chunk_indices(mask: NDArray[np.bool_]) -> list[ChunkIndex]:
    """Indices of the chosen chunks, in row-major order."""
    return [tuple(index) for index in np.argwhere(mask).tolist()]


def check_expected(layout: Layout, expected: Expected) -> None:
    """A `StoreError` unless there is one key for every chunk of every variable."""
    names = {variable.name for variable in layout.variables}
    if set(expected) != names:
        raise StoreError(f"expected keys of {sorted(expected)} for the variables {sorted(names)}")
    for variable in layout.variables:
        keys = expected[variable.name]
        if keys.shape != variable.no_keys.shape or keys.dtype != np.uint8:
            raise StoreError(
                f"expected keys of {variable.name!r} are {keys.dtype} {keys.shape}, its grid of "
                f"chunks needs uint8 {variable.no_keys.shape}"
            )
        if not is_present(keys).all():
            raise StoreError(f"expected keys of {variable.name!r} hold zeros, which mean no key")
