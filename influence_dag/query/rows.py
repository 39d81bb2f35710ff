"""Rows by their names and arrays by their λ, as people write them; what artifacts say of rows."""

import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import Axis, Split, slots_of
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.stages.dampings import is_same
from influence_dag.store import Store, Version
from influence_dag.texts import did_you_mean, listed, literal, short


def check_k(k: object) -> None:
    """Raise `StoreError` for what is no number of rows."""
    if not isinstance(k, Integral) or k < 1:
        raise StoreError(f"k is {k!r:.80}; ask for a whole number of rows, at least one")


def rows_named(labelled: xr.DataArray | xr.Dataset, split: Split, rows: Iterable[object]) -> list:
    """The ids of rows as the axis has them, each once; `"17"` stands for 17 as well.

    They may be another array's coordinate (`study.top_k(test).train`).

    Raises `StoreError` for a name that no row has, with the nearest ones.
    """
    if split not in labelled.dims:
        raise StoreError(
            f"rows are looked up along {split!r}, which is not among the dimensions {labelled.dims}"
        )
    rows = np.atleast_1d(rows.values).tolist() if isinstance(rows, xr.DataArray) else rows
    given = [rows] if isinstance(rows, str) else list(rows)
    known = {str(name): name for name in labelled[split].values.tolist()}
    for name in map(str, given):
        if name not in known:
            near = did_you_mean(name, known)
            raise StoreError(f"no {split} row {literal(name)!r}{near}; it has {len(known):,} rows")
    if not given:
        raise StoreError(f"no {split} row is named; name at least one")
    return [known[name] for name in dict.fromkeys(map(str, given))]


def row_info(store: Store, influences: Version) -> Mapping[str, Any]:
    """What other artifacts say of the rows of a method's `influences`, as these have them.

    They may be of another age: of a row with another content nothing is said, and of another θ,
    curvature or λ nothing but a `RuntimeWarning`.
    """
    method = influences.attrs["method"]
    info: dict[str, Any] = {}
    places: dict[str, tuple[tuple[str, ...], Split]] = {
        naming.factors(method): (("residual", "niter", "converged"), "test"),
        naming.summary(method): (("self_influence",), "train"),
    }
    for artifact, (names, split) in places.items():
        try:
            if version := store.current(artifact):
                _check_system(version, influences)
                slots, known = _slots_in(version, influences, split), version.variables
                info |= {name: _of_rows(version, name, slots) for name in names if name in known}
        except StoreError as error:  # the influences are sound by themselves
            warnings.warn(f"left out {', '.join(names)}: {error}", RuntimeWarning, stacklevel=4)
    return info


def _check_system(version: Version, influences: Version) -> None:
    mine, theirs = ([each.attrs.get(n) for n in naming.SYSTEM] for each in (version, influences))
    if mine != theirs:
        raise StoreError(
            f"{version.artifact} and {influences.artifact} are not of the same θ, curvature and "
            "damping (a refresh has not got there yet); materialise the study again"
        )


def _slots_in(version: Version, influences: Version, split: Split) -> np.ndarray:
    """The slot of each row of the influences, −1 of those that a version lacks or has otherwise."""
    there, here = Axis.read(version, split), Axis.read(influences, split)
    slots = slots_of(here.ids[here.slots], there.ids)
    return np.where(there.keys[slots] == here.keys[here.slots], slots, -1)


def _of_rows(version: Version, name: str, slots: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """A number of each row; NaN for those that are not there."""
    values = np.asarray(version.read(name), np.float64)[..., slots]
    values[..., slots < 0] = np.nan
    return tuple(version.variables[name].dims), values


def of_sweep(array: xr.DataArray) -> str:
    """` at λ = 0.1` of an array that is one of a sweep; of a single λ nothing."""
    return f" at λ = {short(array['damping'].item())}" if "damping" in array.coords else ""


def at_damping(array: xr.DataArray, damping: float | None) -> xr.DataArray:
    """One λ of a sweep, by default the last; an array of one λ, which it says itself, as it is.

    Raises `StoreError` for a λ that there is not.
    """
    if damping is None:
        return array.isel(damping=-1, missing_dims="ignore")
    swept = "damping" in array.dims
    stored = array["damping"].values.tolist() if swept else [array.attrs.get("damping")]
    same = [place for place, each in enumerate(stored) if is_same(each, damping)]
    if not same:
        known = listed(stored, shown=short)
        asked = short(damping) if isinstance(damping, Real) else repr(damping)
        raise StoreError(f"damping {asked} is none of those stored: [{known}]")
    return array.isel(damping=same[0]) if swept else array
