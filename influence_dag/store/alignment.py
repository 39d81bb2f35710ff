"""Writes of whole chunks: two writers of one chunk would lose each other's values silently."""

import itertools
from collections.abc import Mapping

from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.store.layout import ChunkIndex, Variable


def check_whole_chunks(
    variable: Variable, start: tuple[int, ...], values: NDArray, keys: Mapping[ChunkIndex, bytes]
) -> None:
    """A `StoreError` unless values at `start` fill whole chunks and `keys` names just those."""
    dimensions = {len(variable.shape), len(start), values.ndim}
    if values.dtype != variable.dtype or len(dimensions) > 1:
        raise StoreError(
            f"{variable.name!r} takes {variable.dtype} of {len(variable.shape)} dimensions, "
            f"got {values.dtype} of {values.ndim} at {start}"
        )
    stop = tuple(first + length for first, length in zip(start, values.shape, strict=True))
    edges = list(zip(start, stop, variable.chunks, variable.shape, strict=True))
    if any(first % c or (last % c and last != n) or last > n for first, last, c, n in edges):
        raise StoreError(
            f"{variable.name!r}: region {start} to {stop} is not whole chunks of {variable.chunks} "
            f"in {variable.shape}; begin and end at multiples of the chunks or at the array's edge"
        )
    covered = set(itertools.product(*(range(f // c, -(-last // c)) for f, last, c, _ in edges)))
    if set(keys) != covered or not all(len(key) == 16 and any(key) for key in keys.values()):
        raise StoreError(
            f"{variable.name!r}: region {start} to {stop} covers chunks {sorted(covered)}, keys of "
            f"16 bytes (not zeros) are needed for exactly these, got {sorted(keys)}"
        )
