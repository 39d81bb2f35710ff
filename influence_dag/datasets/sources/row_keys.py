"""What a row is known by: hashes of its numbers, whatever they were written in."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from influence_dag.datasets.sources.numbers import beyond, canonical
from influence_dag.datasets.sources.on_demand import Values, row_bytes, runs
from influence_dag.datasets.sources.texts import texts
from influence_dag.fingerprints import KEY_BYTES, row_fingerprints


def input_keys(x: Mapping[str, Values]) -> np.ndarray:
    """Hash of each row's inputs, uint8 `(n, 16)`, block by block."""
    length = len(next(iter(x.values())))
    blocks = [
        value_keys({f"x.{name}": values[rows] for name, values in x.items()})
        for rows in runs(length, row_bytes(*x.values()))
    ]
    return np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *blocks])


def value_keys(
    columns: Mapping[str, np.ndarray], beside: Mapping[str, np.ndarray] = MappingProxyType({})
) -> np.ndarray:
    """Hash of each row's numbers, uint8 `(n, 16)`: 2 is 2.0, and other rows do not matter.

    `beside` are other parts of the rows, as they are.
    """
    large = np.column_stack(
        [beyond(each).any(axis=tuple(range(1, each.ndim))) for each in columns.values()]
    )
    alike = [slice(None)]
    if large.any():  # of a row's own columns some are in another type
        _, group = np.unique(large, axis=0, return_inverse=True)
        alike = [np.flatnonzero(group.ravel() == k) for k in range(group.max() + 1)]
    keys = np.empty((len(large), KEY_BYTES), np.uint8)
    for rows in alike:
        part = {name: canonical(values[rows]) for name, values in columns.items()}
        keys[rows] = row_fingerprints(part | {name: each[rows] for name, each in beside.items()})
    return keys


def equal_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows are the same, numbers as numbers and anything else as text; NaN is NaN."""
    if one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        equal = (one == other) | ((one != one) & (other != other))
    else:
        equal = texts(one) == texts(other)
    return equal.reshape(len(equal), -1).all(axis=1)
