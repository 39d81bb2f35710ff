"""Stored datasets as people are shown them: without empty slots, in types that every format has."""

import json
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import SPLITS, natural_ids
from influence_dag.query.result_arrays import of_results

SLOTS = {"top_train": "train", "bottom_train": "train"}  # arrays of slots → the axis they are on
COUNTED = ("n_train", "weight_sum")  # what influences are divided by, to be changes
LARGEST_TEXT = 2**30  # bytes of one coordinate as numpy text; beyond that it stays as it is read


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
