"""A small artifact to store, and how a file of it is harmed.

Values and keys follow from the rows' contents, as in a real stage: the value of the pair (test j,
train i) is 1000 · content of j + content of i, so that any version can be checked against its rows
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from influence_dag.fingerprints import chunk_keys, grid_keys, row_fingerprints
from influence_dag.store.layout import Coordinate, Layout, Variable
from influence_dag.store.protocol import Draft, Store, Version

NAME = "direct/influences"


@dataclass(frozen=True)
class Sample:
    """An array of influences with its labels, cut in chunks, under keys of its rows' content."""

    test: Sequence[float] = tuple(range(10))
    train: Sequence[float] = tuple(range(20))
    chunks: tuple[int, int] = (4, 8)
    dtype: str = "float32"
    attrs: dict[str, Any] = field(default_factory=lambda: {"units": "loss"})
    max_relative_error: float = 0.0

    @property
    def layout(self) -> Layout:
        shape = (len(self.test), len(self.train))
        influences = Variable(
            "influences",
            ("test", "train"),
            shape,
            self.dtype,
            self.chunks,
            {"long_name": "influence"},
            self.max_relative_error,
        )
        labels = {"test": [f"t{i}" for i in range(shape[0])]}
        labels |= {"train": [f"r{i}" for i in range(shape[1])]}
        coordinates = [Coordinate(dim, (dim,), np.array(ids)) for dim, ids in labels.items()]
        valid = Coordinate(
            "valid", ("train",), np.ones(shape[1], bool), {"long_name": "not a hole"}
        )
        return Layout((influences,), (*coordinates, valid), self.attrs, {"written_by": "a test"})

    @property
    def expected(self) -> dict[str, np.ndarray]:
        rows = [row_fingerprints({"x": np.array(x, float)}) for x in (self.test, self.train)]
        axes = [chunk_keys(keys, chunk) for keys, chunk in zip(rows, self.chunks, strict=True)]
        return {"influences": grid_keys("formula 1", *axes)}

    @property
    def values(self) -> np.ndarray:
        return (1000 * np.array(self.test)[:, None] + np.array(self.train)).astype(self.dtype)

    def with_train(self, changes: dict[int, float]) -> "Sample":
        rows = list(self.train)
        for position, content in changes.items():
            rows[position] = content
        return replace(self, train=tuple(rows))


def write_chunk(draft: Draft, sample: Sample, index: tuple[int, ...]) -> None:
    region = sample.layout["influences"].region(index)
    start = tuple(part.start for part in region)
    key = sample.expected["influences"][index].tobytes()
    draft.write("influences", start, sample.values[region], {index: key})


def write_outdated(draft: Draft, sample: Sample, count: int | None = None) -> None:
    """What is outdated, all of it or the first chunks."""
    for index in draft.outdated(sample.expected)["influences"][:count]:
        write_chunk(draft, sample, index)


def refresh(store: Store, sample: Sample, name: str = NAME) -> Draft:
    """What a stage does: plan, compute what is outdated, publish."""
    with store.new_version(name, sample.layout) as draft:
        write_outdated(draft, sample)
    return draft


def current(store: Store, name: str = NAME) -> Version:
    version = store.current(name)
    assert version is not None
    return version


def published(store: Store, sample: Sample, name: str = NAME) -> Version:
    version = refresh(store, sample, name).version
    assert version is not None
    return version


Edit = Callable[[bytes], bytes | None]


@dataclass(frozen=True)
class Backend:
    """Where an empty store is to be, and how a file of one of its versions is harmed.

    `damage(version, file, edit)` replaces what a file holds by `edit` of it, and removes it where
    that is None; `rot` replaces it so that its stamp does not tell.
    """

    address: str
    damage: Callable[[Version, str, Edit], None]
    rot: Callable[[Version, str, Edit], None]


def truncated(content: bytes) -> bytes:
    return content[:-7]


def emptied(content: bytes) -> bytes:
    return b""


def with_another_bit(content: bytes) -> bytes:
    harmed = bytearray(content)
    harmed[len(harmed) // 2] ^= 1
    return bytes(harmed)


def with_another_bit_of_the_checksum(content: bytes) -> bytes:
    harmed = bytearray(content)
    harmed[-1] ^= 128
    return bytes(harmed)


def removed(content: bytes) -> None:
    return None


HARM = [truncated, emptied, with_another_bit, with_another_bit_of_the_checksum, removed]
SAMPLE = Sample()
ALL_CHUNKS = list(np.ndindex(3, 3))
