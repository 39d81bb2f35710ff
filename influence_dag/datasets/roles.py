"""A source's arrays in their roles: inputs in the study's shape, a target, weights of rows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np

from influence_dag.datasets.sources import Source
from influence_dag.datasets.sources.base import not_finite
from influence_dag.datasets.sources.numbers import decimal, whole
from influence_dag.datasets.sources.on_demand import RowsOnDemand, Values, seen
from influence_dag.datasets.sources.preparing import prepared
from influence_dag.errors import DataError
from influence_dag.study.base import Split
from influence_dag.study.data import DataSettings, FeatureSettings

RESERVED_DIMS = ("test", "train", "param", "damping", "blocks", "influence_dag")  # others' names
_OF_ARRAYS = ("feature_mean", "feature_scale", "perturbation_influences")  # which they stand beside
_OF_ROWS = tuple(f"{split}_" for split in get_args(Split))  # how what results hold of rows begins
_TYPES = {"U": "text", "S": "bytes", "O": "objects", "M": "times", "m": "durations"}
_TYPES |= {"c": "complex numbers", "V": "records"}


def native(source: Source) -> Source:
    """The source with its numbers as torch takes them, of this machine's byte order and 64 bits.

    Arrays of other machines and Fortran's have others; decimals of more bits are rounded.
    """
    inputs = {name: seen(values, _native) for name, values in source.inputs.items()}
    return replace(source, inputs=inputs, target=_native(source.target))


def _native(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        return values
    wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
    return values.astype(np.float64 if wide else values.dtype.newbyteorder("="), copy=False)


def check_finite(source: Source) -> None:
    """Raise `DataError` for what is no finite number: in words, its row and column."""
    for name, values in {**source.inputs, "target": source.target}.items():
        if name == "target" and values.dtype.kind == "O":
            continue  # words
        if values.dtype.kind not in "fiub":
            held = _TYPES.get(values.dtype.kind, values.dtype)
            raise DataError(
                f"{source.name}: {name} holds {held}; expected real numbers: encode it, leave it "
                "out (data.features.columns), or let it travel along (data.keep)"
            )
        known = isinstance(values, RowsOnDemand)
        first = source.not_finite.get(name) if known else not_finite(values)
        if first:
            place = f"{source.row_name(first.row)}, {_place(source, name, first.column)}"
            raise DataError(
                f"{source.name}: {place}: seen {_seen(source, first.value)}, expected a finite "
                f"number ({first.rows} such rows); repair or drop them"
            )


def _place(source: Source, name: str, column: int) -> str:
    if name == "target":
        return "target"
    if source.columns is not None:
        return f"column {source.columns[column]!r}"
    index = np.unravel_index(column, source.inputs[name].shape[1:])
    return f"{name}[{', '.join(map(str, index))}]"


def _seen(source: Source, value: float) -> str:
    return "an empty cell or NaN" if source.columns is not None and np.isnan(value) else str(value)


def scaled(source: Source, name: str, features: FeatureSettings) -> Values:
    """The input in the study's shape, times its scale."""
    values = source.inputs[name]
    if values.dtype == np.uint64 and features.scale == 1:
        values = seen(values, partial(whole, name=name, row_name=_row_name(source, values)))
    elif features.scale != 1 and values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        values = seen(values, partial(decimal, name=name, row_name=_row_name(source, values)))
    if values.ndim > 1 and source.columns is None and not all(values.shape[1:]):
        raise DataError(
            f"{source.name}: {name} has shape {values.shape}, rows without a number; leave it out "
            "(data.features.columns), or write it again"
        )
    if features.shape is not None:
        _check_shape(source, values, features.shape)
    elif source.columns is not None and not source.columns:
        raise DataError(f"{source.name}: no feature columns beside the id and the target; add some")
    of = f"{source.name}: {name}"
    return seen(values, partial(prepared, features=features, name=of))


def _row_name(source: Source, values: Values) -> Callable[[int], str]:
    """How rows are told; of those that are read on demand the file, since they come in blocks."""
    return (lambda row: source.name) if isinstance(values, RowsOnDemand) else source.place_of


def _check_shape(source: Source, values: Values, shape: tuple[int, ...]) -> None:
    if len(source.inputs) > 1:
        raise DataError(
            f"{source.name}: data.features.shape is for one input; this has {list(source.inputs)}"
        )
    count, wanted = int(np.prod(values.shape[1:])), int(np.prod(shape))
    if count != wanted:
        columns = source.columns or ()
        span = f" ({columns[0]} … {columns[-1]})" if columns else ""
        raise DataError(
            f"{source.name}: {count} features a row{span}, but data.features.shape {list(shape)} "
            f"has {wanted} places; correct the shape or name data.features.columns"
        )


def dims(source: Source, features: FeatureSettings, x: dict[str, Values]) -> tuple[str, ...]:
    """Names of the feature axes of a single input; several inputs have none."""
    if len(x) > 1:
        if features.dims is not None:
            raise DataError(
                f"{source.name}: data.features.dims is for one input, not for {list(x)}"
            )
        return ()
    axes = next(iter(x.values())).ndim - 1
    numbered = tuple(f"feature_{axis}" for axis in range(axes))
    named = source.dims if features.shape is None else None
    dims = features.dims or named or (("feature",) if axes == 1 else numbered)
    if len(dims) != axes:
        raise DataError(
            f"{source.name}: data.features.dims {list(dims)} names {len(dims)} axes, "
            f"a row has {axes}; give data.features.shape or as many names"
        )
    for dim in dims:
        what = "axis" if dim in RESERVED_DIMS else "array"
        if what == "axis" or dim in _OF_ARRAYS or dim.startswith(_OF_ROWS):
            raise DataError(
                f"data.features.dims: {dim!r} is the name of another {what}; choose another"
            )
        if not dim or set(dim) & set(" /\\") or dim[0] in "._":
            raise DataError(
                f"data.features.dims: {dim!r} cannot name a stored array; choose a name without "
                "spaces and slashes that begins with neither . nor _"
            )
    return dims


def target(source: Source) -> np.ndarray:
    """Decimals as they are, whole numbers as int64."""
    if source.target.dtype.kind == "f":
        return source.target
    return whole(source.target, name="target", row_name=source.place_of)


def weights(source: Source, data: DataSettings) -> np.ndarray | None:
    """How often each training row counts, float64 `(n,)`."""
    if data.weight is None:
        return None
    if source.no_weights is not None:
        raise source.no_weights
    if source.weights is None:
        raise DataError(f"{source.name}: no weight column {data.weight!r} (data.weight)")
    if source.weights.ndim != 1 or source.weights.dtype.kind not in "fiub":
        raise DataError(
            f"{source.name}: the weights ({data.weight}) are {source.weights.dtype} of shape "
            f"{source.weights.shape}; expected one number a row"
        )
    weights = source.weights.astype(np.float64)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{source.place_of(row)}, weight {data.weight!r}: seen {weights[row]}, expected a "
            f"finite number that is not negative ({int(wrong.sum())} such rows); repair or "
            "drop them"
        )
    if not weights.any():
        raise DataError(
            f"{source.name}: the weights ({data.weight}) are all 0; at least one row has to count"
        )
    return weights
