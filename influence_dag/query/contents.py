"""What rows are made of: features by name, images, columns that travelled along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import Axis, Split, shown_label
from influence_dag.errors import StoreError
from influence_dag.query.holes import without_holes
from influence_dag.query.rows import rows_named

if TYPE_CHECKING:
    from influence_dag.query.questions import Questions

MOST_NAMED = 64  # features that are told one by one
LARGEST_IMAGE = 512  # pixels along a side
SAMPLE = 2000  # rows that say how far a feature varies


@dataclass(frozen=True, eq=False)
class Content:
    """One row: id, label, `kept` columns, and its inputs, each as labelled numbers."""

    id: Any
    label: Any = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, xr.DataArray] = field(default_factory=dict)

    @property
    def image(self) -> np.ndarray | None:
        """Height × width, or with three colours behind, of a row that looks like an image."""
        for array in self.inputs.values():
            values = _as_image(np.asarray(array.values, np.float64))
            if values is not None:
                return values
        return None

    @property
    def features(self) -> dict[str, Any]:
        """Numbers by name, of a row that is a line of a table."""
        features: dict[str, Any] = {}
        for name, array in self.inputs.items():
            if array.ndim == 1 and array.size <= MOST_NAMED:
                given = array.indexes.get(str(array.dims[0]))
                labels = (f"{name}[{k}]" for k in range(array.size)) if given is None else given
                features |= dict(zip(map(str, labels), array.values.tolist(), strict=True))
        return features

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "label": self.label,
            "kept": dict(self.kept),
            "inputs": {name: array.values.tolist() for name, array in self.inputs.items()},
        }


class Contents:
    """The rows of a study as its dataset has them now."""

    def __init__(self, study: "Questions"):
        self._study = study

    @cached_property
    def spreads(self) -> dict[str, float]:
        """Standard deviation of each named feature over the first training rows."""
        some = self._dataset.isel(train=slice(0, SAMPLE))
        arrays = {name: self._of_the_file(some[f"train_{name}"]) for name in self._inputs("train")}
        spreads: dict[str, float] = {}
        for name, array in arrays.items():
            if array.ndim == 2 and array.shape[1] <= MOST_NAMED:
                spread = array.std("train").rename(name)
                spreads |= Content(None, inputs={name: spread}).features
        return spreads

    @cached_property
    def _dataset(self) -> xr.Dataset:
        return without_holes(self._study.store.version("dataset").open(chunks=None))

    def __getitem__(self, of: tuple[Split, Any]) -> Content:
        """`contents["train", "train-0017"]`; `StoreError` for a row that is not there any more."""
        split, name = of
        row = self._dataset.sel({split: rows_named(self._dataset, split, [name])[0]})
        own = Axis.coordinate_names(split, map(str, row.coords))
        label = row.coords.get(f"{split}_label")
        return Content(
            row[split].item(),
            None if label is None else label.item(),
            {each[len(split) + 1 :]: row[each].item() for each in own[4:] if row[each].ndim == 0},
            {name: self._of_the_file(row[f"{split}_{name}"]) for name in self._inputs(split)},
        )

    def of(self, split: Split, names: Sequence[Any]) -> list[Content]:
        """Several rows; one that has left the dataset is known by its id alone."""
        rows = []
        for name in names:
            try:
                rows.append(self[split, name])
            except StoreError:
                rows.append(Content(name))
        return rows

    def _of_the_file(self, seen: xr.DataArray) -> xr.DataArray:
        """What the model sees, in the units of the file's columns again."""
        if {"feature_scale", "feature_mean"} <= seen.coords.keys():
            seen = seen * seen.coords["feature_scale"] + seen.coords["feature_mean"]
        scale = self._dataset.attrs.get("scale", 1.0)
        return seen if scale == 1 or seen.dtype.kind != "f" else seen / scale

    def _inputs(self, split: Split) -> list[str]:
        """Names of what the model takes of a row, where the study stores it."""
        stored = map(str, self._dataset.data_vars)
        names = [name[len(split) + 1 :] for name in stored if name.startswith(f"{split}_")]
        return [name for name in names if name not in ("y", "weight")]


def named(content: Content) -> str:
    """`train-0017 (3)`."""
    return str(content.id) + ("" if content.label is None else f" ({shown_label(content.label)})")


def _as_image(values: np.ndarray) -> np.ndarray | None:
    """Grey or in colours that come last; None for what is no image."""
    if values.ndim == 3 and values.shape[0] in (1, 3) and min(values.shape[1:]) > 3:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    is_grey = values.ndim == 2 and min(values.shape) > 1
    is_coloured = values.ndim == 3 and values.shape[-1] == 3
    if not (is_grey or is_coloured) or max(values.shape[:2]) > LARGEST_IMAGE:
        return None
    return _between_0_and_1(values) if is_coloured else values


def _between_0_and_1(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return values if low >= 0 and high <= 1 else (values - low) / ((high - low) or 1.0)
