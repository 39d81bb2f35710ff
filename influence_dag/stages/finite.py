"""No NaN leaves a stage without a word: what is not finite is told by row and feature."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from influence_dag.errors import ModelError
from influence_dag.store import Layout


@dataclass(frozen=True, eq=False)
class Finite:
    """Whether blocks of an artifact are finite at the rows that exist."""

    artifact: str
    layout: Layout

    def check(self, name: str, values: np.ndarray, start: Sequence[int]) -> None:
        """Raise `ModelError` for the first number of a block that is not; holes are NaN."""
        variable = self.layout[name]
        if values.dtype.kind != "f" or variable.coordinate:
            return
        bad = ~np.isfinite(values)
        if not bad.any():
            return
        starts = (*start, *(0,) * (values.ndim - len(start)))
        for axis, (dim, first) in enumerate(zip(variable.dims, starts, strict=True)):
            valid = self._labels.get(f"{dim}_valid")
            if valid is not None:
                here = valid[first : first + values.shape[axis]]
                bad &= here.reshape(-1, *[1] * (values.ndim - 1 - axis))
        if bad.any():
            raise self._error(name, bad, starts)

    def _error(self, name: str, bad: np.ndarray, starts: Sequence[int]) -> ModelError:
        first = tuple(int(each) for each in np.argwhere(bad)[0])
        place = tuple(begin + k for begin, k in zip(starts, first, strict=True))
        return ModelError(
            f"{self.artifact}: {name} is not finite at {', '.join(self._named(name, place))} "
            f"({int(bad.sum())} numbers of this block are not): the model or its loss has no "
            "derivative there (a root or a norm of zeros), or overflows; move the row off that "
            "point or leave it out, scale the columns, or compute in float64; nothing was published"
        )

    def _named(self, name: str, place: Sequence[int]) -> Iterator[str]:
        for dim, position in zip(self.layout[name].dims, place, strict=True):
            labels = self._labels.get(dim)
            yield f"{dim} {position if labels is None else repr(labels[position])}"

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        flat = (each for each in self.layout.coordinates if each.values.ndim == 1)
        return {each.name: _plain(each.values) for each in flat}


def _plain(values: np.ndarray) -> np.ndarray:
    """Truth values as they are, anything else as objects that print as themselves."""
    return values if values.dtype.kind == "b" else np.array(values.tolist(), object)
