"""Stored datasets as people are shown them: without empty slots, in types that every format has."""

import json
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import SPLITS, natural_ids

SLOTS = {"top_train": "train", "bottom_train": "train"}  # arrays of slots → the axis they are on
COUNTED = ("n_train", "weight_sum")  # what influences are divided by, to be changes
LARGEST_TEXT = 2**30  # bytes of one coordinate as numpy text; beyond that it stays as it is read
_TEXT = "UTO"  # kinds of dtypes that have no mean


def without_holes(dataset: xr.Dataset) -> xr.Dataset:
    """The rows that exist, `portable`. Bookkeeping (`*_valid`, `*_key`, `blocks`) is dropped.

    What names rows by their slots then names them by their positions among those that exist.
    """
    for split in SPLITS:
        valid = dataset.coords.get(f"{split}_valid")
        if valid is not None and not bool(valid.all()):
            dataset = dataset.isel({split: np.flatnonzero(valid.values)})
            dataset = _renumbered(dataset, split, valid.values)
    ids = {split: natural_ids(dataset[split].values) for split in SPLITS if split in dataset.coords}
    dataset = dataset.assign_coords(
        {split: (split, values, dataset[split].attrs) for split, values in ids.items()}
    )
    bookkeeping = ["blocks", *(f"{split}_{what}" for split in SPLITS for what in ("valid", "key"))]
    return of_results(_counted(portable(dataset.drop_vars(bookkeeping, errors="ignore"))))


def _counted(dataset: xr.Dataset) -> xr.Dataset:
    """Influences say themselves at what λ, and by what they are divided to be changes of losses."""
    if "influences" in dataset:
        known = {n: dataset.attrs[n] for n in ("damping", *COUNTED) if n in dataset.attrs}
        dataset.variables["influences"].attrs.update(known)
    return dataset


def _renumbered(dataset: xr.Dataset, split: str, valid: np.ndarray) -> xr.Dataset:
    """Slots on an axis as positions among its rows that exist; −1, of no row, stays."""
    positions = np.append(np.where(valid, np.cumsum(valid) - 1, -1), -1)
    for name in SLOTS.keys() & dataset.keys():
        if SLOTS[name] == split:
            dataset[name] = dataset[name].copy(data=positions[dataset[name].values])
    return dataset


def portable(dataset: xr.Dataset) -> xr.Dataset:
    """The same, free of what only this store's format has: it can be saved in any other.

    Labels are numpy text (`<U`), which pandas, matplotlib, netCDF and Zarr 2 take and numpy's
    variable-width strings are not; encodings, which would cut an array as the store does, are
    dropped; attributes that are groups or tables become JSON.
    """
    labels = {
        name: (array.dims, numpy_text(array.values), array.attrs)
        for name, array in dataset.coords.items()
        if array.dtype.kind in "TO"
    }
    dataset = dataset.assign_coords(labels).drop_encoding()
    for item in (dataset, *dataset.variables.values()):
        item.attrs = {name: _attribute(value) for name, value in item.attrs.items()}
    return dataset


def _attribute(value: Any) -> Any:
    """A number, a text or a list of numbers as it is; anything else as JSON."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return value
    return json.dumps(value)


def numpy_text(values: np.ndarray) -> np.ndarray:
    longest = max(map(len, values.ravel().tolist()), default=0)
    room = 4 * longest * values.size <= LARGEST_TEXT  # a text takes as much as the longest one
    texts = values.astype(object)
    return texts.astype(str) if room else texts


class _NamedByTheirFirst:
    """Blocks of rows, when coarsened, are named by their first row.

    xarray takes the mean of every coordinate that is coarsened, and text has none; `coord_func`
    says otherwise, as there.
    """

    __slots__ = ()

    def coarsen(
        self,
        dim: Mapping[Any, int] | None = None,
        boundary: Any = "exact",
        side: Any = "left",
        coord_func: Any = None,
        **windows: int,
    ) -> Any:
        functions = _functions(self, coord_func)  # type: ignore[arg-type]
        return super().coarsen(dim, boundary, side, functions, **windows)  # type: ignore[misc]


class ResultArray(_NamedByTheirFirst, xr.DataArray):
    """A `DataArray` that coarsens rows with names."""

    __slots__ = ()


class ResultDataset(_NamedByTheirFirst, xr.Dataset):
    """A `Dataset` of `ResultArray`s."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        array = super().__getitem__(key)
        return ResultArray(array) if type(array) is xr.DataArray else array


def of_results(dataset: xr.Dataset) -> ResultDataset:
    return ResultDataset(dataset.data_vars, dataset.coords, dataset.attrs)


def _functions(labelled: xr.DataArray | xr.Dataset, asked: Any) -> Any:
    """How each coordinate is coarsened: as asked, text by its first, the others by their mean."""
    text: dict[Hashable, Any] = {
        name: _first for name, values in labelled.coords.items() if values.dtype.kind in _TEXT
    }
    if asked is not None and not isinstance(asked, Mapping):
        return dict.fromkeys(labelled.coords, asked) | text
    return text | dict(asked or {})


def _first(blocks: np.ndarray, axis: int | tuple[int, ...], **_: Any) -> np.ndarray:
    """The first entry of each block, over the axes within blocks."""
    for position in sorted(np.atleast_1d(axis), reverse=True):
        blocks = blocks.take(0, axis=int(position))
    return blocks
