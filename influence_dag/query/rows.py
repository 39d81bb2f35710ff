"""Rows by their names, as people write them."""

from collections.abc import Iterable

import xarray as xr

from influence_dag.datasets.slots import Split
from influence_dag.errors import StoreError
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
