"""Rows that are read when they are asked for: what code makes is never in memory as a whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

BLOCK_BYTES = 2**25  # of rows that are looked at together


@dataclass(frozen=True, eq=False)
class RowsOnDemand:
    """An array `(n, *shape)` of which only the rows that are asked for are in memory.

    `read(positions)` makes them; `values[5:9]` and `values[[7, 2]]` are arrays.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        positions = np.arange(len(self))[rows]
        values = self.read(np.atleast_1d(positions))
        return values[0] if np.ndim(positions) == 0 else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "RowsOnDemand":
        """The same rows, each seen through a function of arrays of rows."""
        like = function(np.empty((0, *self.shape[1:]), self.dtype))
        shape = (len(self), *like.shape[1:])
        return RowsOnDemand(shape, like.dtype, lambda rows: function(self.read(rows)))


Values: TypeAlias = np.ndarray | RowsOnDemand


def seen(values: Values, function: Callable[[np.ndarray], np.ndarray]) -> Values:
    """Rows through a function of arrays of rows: at once, or when they are asked for."""
    return values.map(function) if isinstance(values, RowsOnDemand) else function(values)


def runs(rows: int, row_bytes: int, start: int = 0) -> Iterator[slice]:
    """Consecutive slices of rows, about `BLOCK_BYTES` each."""
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    for first in range(start, rows, size):
        yield slice(first, min(first + size, rows))


def row_bytes(*values: Values) -> int:
    """What a row takes as float64, in which rows are compared and stored."""
    return 8 * sum(int(np.prod(each.shape[1:])) for each in values)


def moments(
    values: Values, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and largest size over the rows, each in the shape of a row.

    A row of weight 2 counts twice, one of weight 0 not at all. In float64, block by block; these
    are merged by their sums of squares about their own means (Chan et al., 1979).
    """
    count, mean, squares, largest = 0, 0.0, 0.0, 0.0
    for rows in runs(len(values), row_bytes(values)):
        block = values[rows].astype(np.float64)
        w = None if weights is None else weights[rows][weights[rows] > 0]
        block = block if weights is None else block[weights[rows] > 0]
        if not len(block):
            continue
        n = len(block) if w is None else w.sum()
        own = _total(block, w) / n
        step = own - mean
        squares = squares + _total(np.square(block - own), w)
        squares = squares + np.square(step) * (count * n / (count + n))
        mean = mean + step * (n / (count + n))
        largest = np.maximum(largest, np.abs(block).max(axis=0))
        count += n
    return np.asarray(mean), np.sqrt(np.asarray(squares) / count), np.asarray(largest)


def _total(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return values.sum(axis=0) if weights is None else np.tensordot(weights, values, 1)
