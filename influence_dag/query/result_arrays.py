"""xarray objects of stored results, whose text labels stand what xarray does to coordinates."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

_TEXT = "UTO"  # kinds of dtypes that have no mean


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
