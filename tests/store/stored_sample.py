"""A small artifact to store: values and keys follow from the rows' contents, as in a real stage.

Value of the pair (test j, train i) = 1000 * content of j + content of i, so any version can be
checked against its rows alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from influence_dag.fingerprints import chunk_keys, grid_keys, row_fingerprints
from influence_dag.store import ArtifactStore, Coordinate, Draft, Layout, Variable

NAME = "direct/influences"


@dataclass(frozen=True)
class Sample:
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


def refresh(store: ArtifactStore, sample: Sample, name: str = NAME) -> Draft:
    """What a stage does: plan, compute what is outdated, publish."""
    with store.new_version(name, sample.layout) as draft:
        for index in draft.outdated(sample.expected)["influences"]:
            write_chunk(draft, sample, index)
    return draft


def refresh_with_results(store: ArtifactStore, sample: Sample, name: str = NAME) -> Draft:
    """The same for a stage that has results: set after computing, and where a kill lost them."""
    with store.new_version(name, sample.layout) as draft:
        for index in draft.outdated(sample.expected)["influences"]:
            write_chunk(draft, sample, index)
        if draft.lacks("total"):
            draft.set_result("total", ("test",), sample.values.sum(axis=1))
    return draft


def chunk_files(store: ArtifactStore, number: int | None = None) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every chunk file of a version."""
    files = (store.version(NAME, number).path / "influences").glob("c.*")
    return {path.name.removeprefix("c."): (path.stat().st_ino, path.read_bytes()) for path in files}
