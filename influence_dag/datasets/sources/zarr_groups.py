"""Groups of Zarr arrays, read as xarray reads them."""

import math
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from influence_dag.errors import DataError
from influence_dag.files import files_behind, files_below
from influence_dag.study.data import DataSettings
from influence_dag.texts import listed

MOST = 10_000  # missing chunks that are counted; an array may say that it has any number
_CODED = ("scale_factor", "add_offset", "missing_value", "_FillValue", "units", "_Unsigned")


AxisLabels = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Of each array its axes but the first, by name and in order; empty where nothing stands along."""


def read_group(
    path: Path, name: str, data: DataSettings
) -> tuple[dict[str, np.ndarray], AxisLabels]:
    """The arrays of a group by name, their packing undone: numbers, times, truth values, text.

    `scale_factor`, `add_offset`, `_FillValue`, `missing_value` and units of time count as in
    `xarray.open_zarr`. Its coordinates are labels, and left out unless the settings name them;
    those along the axes of an array behind its rows are given beside the arrays, by name and axis.
    Raises `DataError` for what cannot be read, for chunks that are not there, and where the axis
    of the target's rows is another array's second or later one.
    """
    _check_files(path, name)
    try:
        return _decoded(path, name, zarr.open_group(path, mode="r"), data)
    except DataError:
        raise
    except Exception as error:  # codecs, metadata and files fail in many types
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: not a readable Zarr group: {said:.500}") from error


def _decoded(
    path: Path, name: str, group: zarr.Group, data: DataSettings
) -> tuple[dict[str, np.ndarray], AxisLabels]:
    arrays = dict(group.arrays())
    named = {"id", *data.roles, *(data.features.columns or ())}
    by_xarray = all(map(_has_names, arrays.values()))  # it opens no group without names of axes
    summary = group.metadata.consolidated_metadata is not None
    dataset = xr.open_zarr(path, chunks=None, consolidated=summary) if by_xarray else xr.Dataset()
    wanted = {
        key: array for key, array in arrays.items() if key in named or key not in dataset.coords
    }
    axes = {str(dim) for key in wanted if by_xarray for dim in dataset[key].dims[1:]}
    for key, array in (wanted | {axis: arrays[axis] for axis in axes & arrays.keys()}).items():
        _check_chunks(path, array, f"{name}: {key}")
    if by_xarray:
        _check_rows(name, {key: dataset[key] for key in wanted}, data.target)
        labels = {key: _labels(dataset[key]) for key in wanted}
        return {key: np.asarray(dataset[key].values) for key in wanted}, labels
    return {key: _plain(f"{name}: {key}", array) for key, array in wanted.items()}, {}


def _check_rows(name: str, arrays: Mapping[str, xr.DataArray], target: str) -> None:
    rows = arrays[target].dims[:1] if target in arrays else ()
    for key, array in arrays.items():
        if behind := [dim for dim in array.dims[1:] if dim in rows]:
            raise DataError(
                f"{name}: {key} has the axes {listed(array.dims)}, and {behind[0]} is that of the "
                f"rows of {target}; write arrays with their rows first"
            )


def _labels(array: xr.DataArray) -> dict[str, tuple[str, ...]]:
    return {
        str(dim): tuple(map(str, array[dim].values.tolist() if dim in array.coords else ()))
        for dim in array.dims[1:]
    }


def _check_files(path: Path, name: str) -> None:
    """A `DataError` for what is no file: reading a pipe would wait for ever."""
    for file in files_behind(path) if path.is_dir() else ():
        if not os.path.isfile(file):
            raise DataError(f"{name}: {file} is neither a file nor a folder; write it again")


def _has_names(array: zarr.Array) -> bool:
    named = getattr(array.metadata, "dimension_names", None)
    return array.ndim == 0 or bool(named) or "_ARRAY_DIMENSIONS" in array.attrs


def _plain(name: str, array: zarr.Array) -> np.ndarray:
    """An array as it is stored; a `DataError` for one that says of itself that it is coded."""
    if coded := [each for each in _CODED if each in array.attrs]:
        raise DataError(
            f"{name} has the attribute {coded[0]!r}, and the group has no names of dimensions, "
            "without which xarray does not read it; write the numbers themselves, or the group "
            "with xarray"
        )
    return np.asarray(array[...])


def _check_chunks(path: Path, array: zarr.Array, name: str) -> None:
    """A `DataError` for chunks that are not stored: Zarr would give the fill value for them."""
    if array.ndim == 0:
        return
    files = array.shards or array.chunks
    grid = [-(-length // size) for length, size in zip(array.shape, files, strict=True)]
    total = math.prod(grid)
    folder = f"{path / array.path}/"
    there = {file.removeprefix(folder) for file in files_below(folder.rstrip("/"))}
    places = (np.unravel_index(position, grid) for position in range(total))
    keys = (array.metadata.encode_chunk_key(tuple(map(int, place))) for place in places)
    lost = (key for key in keys if key not in there and not os.path.exists(folder + key))  # links
    missing = list(islice(lost, MOST))
    if missing:
        count = len(missing) if len(missing) < MOST else f"at least {MOST:,}"
        raise DataError(
            f"{name}: {count} of its {total} chunks are not stored "
            f"({listed(missing, 3)}) and would read as {array.fill_value}: they are lost, or "
            "were left out because they hold nothing else; restore them, or write all chunks "
            "(zarr: config={'write_empty_chunks': True}, xarray: to_zarr(…, "
            "write_empty_chunks=True))"
        )
