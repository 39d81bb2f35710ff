"""Rows by their names, as people write them, and what other artifacts say of them."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import Axis, Split
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.store import Store, Version
from influence_dag.texts import did_you_mean, literal


def rows_named(labelled: xr.DataArray | xr.Dataset, split: Split, rows: Iterable[object]) -> list:
    """The ids of rows as the axis has them, each once; `"17"` stands for 17 as well.

    Raises `StoreError` for a name that no row has, with the nearest ones.
    """
    if split not in labelled.dims:
        raise StoreError(
            f"rows are looked up along {split!r}, which is not among the dimensions {labelled.dims}"
        )
    given = [rows] if isinstance(rows, str) else list(rows)
    known = {str(name): name for name in labelled[split].values.tolist()}
    for name in map(str, given):
        if name not in known:
            near = did_you_mean(name, known)
            raise StoreError(f"no {split} row {literal(name)!r}{near}; it has {len(known):,} rows")
    if not given:
        raise StoreError(f"no {split} row is named; name at least one")
    return [known[name] for name in dict.fromkeys(map(str, given))]


def row_info(store: Store, method: str, dataset: xr.Dataset) -> Mapping[str, Any]:
    """Per-row results of other artifacts, matched by id (they may be of another age)."""
    info: dict[str, Any] = {}
    places: dict[str, tuple[tuple[str, ...], Split]] = {
        naming.factors(method): (("residual", "niter", "converged"), "test"),
        naming.summary(method): (("self_influence",), "train"),
    }
    for artifact, (names, split) in places.items():
        try:
            if version := store.current(artifact):
                known = [name for name in names if name in version.variables]
                info |= {name: _matched(version, name, split, dataset) for name in known}
        except StoreError as error:  # the influences are sound by themselves
            warnings.warn(f"left out {', '.join(names)}: {error}", RuntimeWarning, stacklevel=4)
    return info


def _matched(
    version: Version, name: str, split: Split, dataset: xr.Dataset
) -> tuple[tuple[str, ...], np.ndarray]:
    """A stored per-row array in the order of the dataset's rows; NaN for rows that it lacks."""
    axis = Axis.read(version, split)
    slots = {str(axis.ids[slot]): slot for slot in axis.slots}
    at = np.array([slots.get(str(row), -1) for row in dataset[split].values], dtype=np.int64)
    values = np.asarray(version.read(name), np.float64)[..., np.maximum(at, 0)]
    values[..., at < 0] = np.nan
    return tuple(version.variables[name].dims), values
