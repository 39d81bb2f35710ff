"""What a row is, as a person looks at it: a picture, columns of a table, a text."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.slots import Split, shown_label
from influence_dag.explorer.numbers import number
from influence_dag.explorer.opened import Opened, Rows
from influence_dag.store import Version

SAMPLED = 2_000  # training rows from which the spread of columns and pixels is taken
LARGEST_PICTURE = 4_000  # pixels along a side that are still shown as a picture
CHANNELS = (1, 3, 4)
DIFFERS = 1.0  # standard deviations of a column by which two rows differ visibly


@dataclass(frozen=True)
class Found:
    """A row where it is stored: the version of the dataset and the slot."""

    version: Version
    slot: int


class Contents:
    """Looks rows up in the kept versions of the dataset."""

    def __init__(self, opened: Opened):
        self.opened = opened

    def find(self, rows: Rows, position: int) -> Found | None:
        """The row with this very content: of the current dataset, or of one that is still kept."""
        split: Split = rows.axis.name
        name, key = rows.ids[position], rows.keys[position]
        for version in self.opened.kept("dataset"):
            slot = self.opened.rows(version, split).slot(name, key)
            if slot is not None:
                return Found(version, slot)
        return None

    def shown(self, rows: Rows, position: int) -> dict[str, Any]:
        """A row's content as the page shows it, and the columns that travel along."""
        kept = [
            {"name": name, "text": shown_label(values[position])}
            for name, values in rows.kept.items()
        ]
        place = self.find(rows, position)
        if place is None:
            said = "its content is in no version of the dataset that is still kept"
            return {"inputs": [], "kept": kept, "said": said}
        look = Look(place.version)
        inputs = [look.input(rows.axis.name, name, place.slot) for name in look.inputs]
        return {"inputs": inputs, "kept": kept, "dataset": place.version.number}

    def values(self, rows: Rows, position: int, name: str) -> tuple["Look", NDArray] | None:
        """One input of a row as the model sees it; None without the row, or without the input."""
        place = self.find(rows, position)
        if place is None or name not in (look := Look(place.version)).inputs:
            return None
        return look, look.read(rows.axis.name, name, slice(place.slot, place.slot + 1))[0]


_looks: dict[tuple[str, str], dict[str, Any]] = {}


@dataclass(frozen=True)
class Look:
    """How the inputs of a version of the dataset are looked at."""

    version: Version

    @property
    def inputs(self) -> list[str]:
        return list(self.version.attrs["inputs"])

    def variable(self, split: Split, name: str) -> str:
        return f"{split}_x" if len(self.inputs) == 1 else f"{split}_x_{name}"

    def read(self, split: Split, name: str, slots: slice) -> NDArray:
        return self.version.read(self.variable(split, name), slots)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.version.variables[self.variable("train", name)].shape[1:]

    def names(self, name: str) -> list[str] | None:
        """Names of the columns, where the input is a table's row."""
        if len(self.shape(name)) != 1 or len(self.inputs) > 1:
            return None
        (dim,) = self.version.attrs["feature_dims"]
        if dim not in self.version.coordinates:
            return None
        return [str(each) for each in self.version.coordinate(dim).tolist()]

    def pictured(self, name: str) -> dict[str, Any] | None:
        """What the page needs to ask for an input as a picture; None where it is none."""
        if not is_picture(self.shape(name)):
            return None
        rows, columns = _sides(self.shape(name))
        return {"kind": "picture", "name": name, "height": rows, "width": columns}

    def input(self, split: Split, name: str, slot: int) -> dict[str, Any]:
        """One input of one row: a picture's address is made by the page, columns are given."""
        if told := self.pictured(name):
            return told
        values = self.read(split, name, slice(slot, slot + 1))[0]
        if values.ndim != 1:
            return {"kind": "array", "name": name, "shape": list(values.shape)}
        if values.dtype.kind in "iu":
            return {"kind": "tokens", "name": name, "tokens": values.tolist()}
        names = self.names(name) or [f"{name}[{k}]" for k in range(len(values))]
        units = self.in_units(values)
        columns = [[each, number(value)] for each, value in zip(names, units, strict=True)]
        return {"kind": "table", "name": name, "columns": columns}

    def in_units(self, values: NDArray) -> NDArray:
        """Columns as the file has them, whatever the model sees of them."""
        scale = self.version.attrs.get("scale", 1.0)
        if len(self.inputs) == 1 and "feature_scale" in self.version.coordinates:
            at = self.version.coordinate("feature_scale"), self.version.coordinate("feature_mean")
            values = values * at[0] + at[1]
        return values / scale

    def differences(self, name: str, one: NDArray, other: NDArray) -> NDArray:
        """How many standard deviations of its column each number is from the other row's."""
        spread = self.about(name)["spread"]
        return (one - other) / np.where(spread > 0, spread, np.inf)

    def about(self, name: str) -> dict[str, Any]:
        """The spread of an input's numbers over some training rows, and their ends."""
        key = self.version.data_version, name
        if (known := _looks.get(key)) is None:  # another thread may clear them at any time
            if len(_looks) > 32:
                _looks.clear()
            sample = self.read("train", name, slice(0, SAMPLED)).astype(np.float64)
            with np.errstate(invalid="ignore"):
                few = sample[np.isfinite(sample.reshape(len(sample), -1)).all(axis=1)]
            low, high = (float(few.min()), float(few.max())) if few.size else (0.0, 1.0)
            inside = low >= 0.0 and high <= 1.0
            ends = (0.0, 1.0) if inside else (low, high)
            spread = few.std(axis=0) if len(few) else np.zeros(sample.shape[1:])
            known = _looks[key] = {"spread": spread, "ends": ends}
        return known


def is_picture(shape: tuple[int, ...]) -> bool:
    """Two sides, with or without channels before or behind them.

    >>> is_picture((8, 8)), is_picture((3, 32, 32)), is_picture((30,)), is_picture((2, 5))
    (True, True, False, False)
    """
    if len(shape) == 2:
        return min(shape) >= 3 and max(shape) <= LARGEST_PICTURE
    return len(shape) == 3 and _channel_axis(shape) is not None and is_picture(_sides(shape))


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    if len(shape) != 3:
        return None
    return 0 if shape[0] in CHANNELS else 2 if shape[2] in CHANNELS else None


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    axis = _channel_axis(shape)
    sides = [size for place, size in enumerate(shape) if place != axis]
    return sides[0], sides[1]


def picture(values: NDArray, ends: tuple[float, float]) -> bytes:
    """A PNG of one row: ink on paper where it has no channels, else as a photograph."""
    low, high = ends
    shares = np.clip((np.nan_to_num(values) - low) / ((high - low) or 1.0), 0.0, 1.0)
    axis = _channel_axis(values.shape)
    if axis is None:
        return _png((255 * (1.0 - shares)).round().astype(np.uint8))
    last = np.moveaxis(shares, axis, -1)
    pixels = (255 * last).round().astype(np.uint8)
    return _png(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


HELPS, HARMS = (33, 102, 172), (178, 24, 43)


def overlay(values: NDArray) -> bytes:
    """A feature map as a PNG to lay over the row: blue helps, red harms, clear says nothing.

    Channels are summed: moving all of a pixel's channels alike.
    """
    axis = _channel_axis(values.shape)
    flat = np.nan_to_num(values if axis is None else values.sum(axis=axis))
    strength = np.abs(flat) / (np.abs(flat).max() or 1.0)
    pixels = np.where(flat[..., None] >= 0, np.array(HELPS), np.array(HARMS))
    alpha = (255 * strength).round()[..., None]
    return _png(np.concatenate([pixels, alpha], axis=-1).astype(np.uint8))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image  # what matplotlib writes pictures with

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def compared(look: Look, name: str, of_row: NDArray, of_test: NDArray) -> list[dict[str, Any]]:
    """A table's row beside the test row: every column, those that differ most first."""
    names = look.names(name) or [f"{name}[{k}]" for k in range(len(of_row))]
    apart = look.differences(name, of_row, of_test)
    here, there = look.in_units(of_row), look.in_units(of_test)
    order = np.argsort(-np.abs(np.nan_to_num(apart)), kind="stable")
    return [
        {
            "name": names[k],
            "value": number(here[k]),
            "test": number(there[k]),
            "apart": number(apart[k]),
            "differs": bool(abs(apart[k]) >= DIFFERS),
        }
        for k in order.tolist()
    ]
