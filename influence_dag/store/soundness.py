"""What of a version is missing or is not what was written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.store.arrays import chunk_file, is_sound
from influence_dag.store.layout import ChunkIndex

if TYPE_CHECKING:
    from influence_dag.store.published import StoredVersion


@dataclass(frozen=True)
class Damage:
    """A file of a version that is missing or is not what was written."""

    file: str
    missing: bool
    variable: str | None = None
    chunk: ChunkIndex | None = None


def damaged_files(version: "StoredVersion", *, checksums: bool) -> list[Damage]:
    """Damage among metadata, coordinates, results and added files."""
    damage = []
    for name, (size, modified, expected) in version.manifest["files"].items():
        seen = version.contents.stamp(name)
        if seen is None:
            damage.append(Damage(name, missing=True))
        elif (checksums or seen != (size, modified)) and not _holds(version, name, expected):
            damage.append(Damage(name, missing=False))
    return damage


def damaged_chunks(version: "StoredVersion", variable: str, *, checksums: bool) -> list[Damage]:
    """Damage among a variable's chunks."""
    stamps = version.stamps(variable)
    known = stamps.reshape(-1, 3).tolist()
    damage = []
    for index, published in zip(np.ndindex(stamps.shape[:-1]), known, strict=True):
        file = chunk_file(variable, index)
        seen = version.contents.stamp(file)
        if seen is None:
            damage.append(Damage(file, True, variable, index))
        elif (checksums or list(seen) != published[:2]) and not _holds(version, file, published[2]):
            damage.append(Damage(file, False, variable, index))
    return damage


def _holds(version: "StoredVersion", file: str, expected: int) -> bool:
    """Whether a file is what was published under its name; one that cannot be read is not."""
    content = version.contents.read(file)
    return content is not None and is_sound(file, content, expected)
