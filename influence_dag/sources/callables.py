"""Rows that code makes: `module:callable` → a map-style dataset of `(x, y)`, or a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from influence_dag.data_settings import DataSettings
from influence_dag.errors import DataError
from influence_dag.sources.arrays import array_source, kept_array
from influence_dag.sources.base import INPUT, Source, chosen, same_length
from influence_dag.sources.tables import frame_source
from influence_dag.sources.texts import numbers_or_words
from influence_dag.users_code import named_by

TARGETS = ("labels", "label", "targets", "target", "y")  # as in batches of a loader
WEIGHTS = ("weights", "weight", "sample_weight")


def read_callable(name: str, data: DataSettings, which: str, root: Path) -> Source:
    dataset = made(name, root, which)
    if (table := as_table(dataset)) is not None:
        return _table_source(table, name, data)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"data.{which}: {name} returned a {type(dataset).__name__}; expected a map-style "
            "dataset with __len__ and __getitem__ yielding (x, y), or a table (of pandas, polars, "
            "Arrow, or a datasets.Dataset)"
        )
    with named_by(f"data.{which}: the length of {name}", "a number of rows is wanted", DataError):
        count = len(dataset)
    if count == 0:
        raise DataError(f"data.{which}: {name} is empty; at least one row is needed")
    weighted = data.weight is not None and which == "train"
    sizes = (3,) if weighted else (2,) if data.weight is None else (2, 3)
    items = [_item(dataset, name, row, sizes) for row in range(count)]
    inputs, targets, weights = zip(*items, strict=True)
    ids = None if data.id is None else getattr(dataset, data.id, None)
    if data.id is not None and ids is None:
        raise DataError(f"{name}: the dataset has no attribute {data.id!r} (data.id) with row ids")
    for row, names in enumerate(map(list, inputs)):
        if names != list(inputs[0]):
            raise DataError(f"{name}: row {row} has inputs {names}, row 0 has {list(inputs[0])}")
    arrays = {key: _stack(name, key, [row[key] for row in inputs]) for key in inputs[0]}
    wanted = chosen(name, arrays, data.features.columns)
    target = numbers_or_words(_stack(name, "y", list(targets)))
    kept = {}
    for column in data.keep:
        if not hasattr(dataset, column):
            raise DataError(
                f"{name}: the dataset has no attribute {column!r} (data.keep), one value a row"
            )
        kept[column] = kept_array(name, column, np.asarray(getattr(dataset, column)))
    return same_length(
        Source(
            name,
            wanted,
            target,
            None if ids is None else np.asarray(ids),
            weights=_stack(name, "weight", list(weights)) if weighted else None,
            kept=kept,
        )
    )


def made(name: str, root: Path, which: str) -> Any:
    """What the callable returns."""
    from influence_dag.models import import_callable  # here: it imports torch

    make = import_callable(name, root, f"data.{which}")
    wanted = "it is called without arguments and returns a data set or a table"
    with named_by(f"data.{which}: {name}", wanted, DataError):
        return make()


def as_table(dataset: Any) -> pd.DataFrame | None:
    """What a callable returned as a data frame, if it is a table.

    Those of polars, Arrow and Hugging Face's `datasets` turn themselves into one.
    """
    if isinstance(dataset, pd.DataFrame):
        return dataset
    is_table = hasattr(dataset, "to_pandas") and (
        hasattr(dataset, "column_names") or hasattr(dataset, "columns")
    )
    table = dataset.to_pandas() if is_table else None
    return table if isinstance(table, pd.DataFrame) else None


def _table_source(table: pd.DataFrame, name: str, data: DataSettings) -> Source:
    """A table of numbers and words; one whose cells are lists, such as tokens, is arrays."""
    if not len(table):
        raise DataError(f"{name}: the table has no rows; at least one is needed")
    wide = [str(c) for c in table if isinstance(table[c].iloc[0], list | tuple | np.ndarray)]
    if not wide:
        return frame_source(table, name, data)
    arrays = {
        str(column): (
            _stack(name, str(column), [np.asarray(cell) for cell in table[column]])
            if str(column) in wide
            else table[column].to_numpy()
        )
        for column in table
    }
    return array_source(arrays, name, data)


def in_parts(item: Any) -> Any:
    """A row that is one mapping as `(inputs, target)` or `(inputs, target, weight)`.

    The target is under `labels` (`label`, `targets`, `target`, `y`), the weight under `weight`.
    """
    if not isinstance(item, Mapping):
        return item
    inputs = dict(item)
    target = next((name for name in TARGETS if name in inputs), None)
    if target is None:
        return item
    weight = next((name for name in WEIGHTS if name in inputs), None)
    parts = [inputs.pop(target), *([inputs.pop(weight)] if weight else [])]
    only = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return (only, *parts)


def read_item(dataset: Any, name: str, row: int) -> Any:
    """A row as the data set has it."""
    with named_by(f"{name}: row {row}", "every row has to be readable, in any order", DataError):
        return dataset[row]


def _item(
    dataset: Any, name: str, row: int, sizes: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs by name, target and weight (1 where there is none) of a row, of so many parts."""
    item = in_parts(read_item(dataset, name, row))
    size = len(item) if isinstance(item, tuple | list) else 0
    if size not in sizes:
        expected = "a pair (x, y)" if 2 in sizes else "(x, y, weight), as data.weight is set"
        seen = f"{type(item).__name__}{f' of {size}' if size else ''}"
        cure = "; set data.weight if the third part is the row's weight" if size == 3 else ""
        raise DataError(f"{name}: row {row} is a {seen}; expected {expected}{cure}")
    x, y, weight = item if size == 3 else (*item, 1.0)
    if isinstance(x, tuple | list):
        raise DataError(
            f"{name}: row {row} has a {type(x).__name__} as x; expected one tensor, or a dict "
            "whose names are the arguments of the module's forward"
        )
    named = x if isinstance(x, dict) else {INPUT: x}
    arrays = {key: np.asarray(value) for key, value in named.items()}
    return arrays, np.asarray(y), np.asarray(weight)


def _stack(name: str, key: str, rows: list[np.ndarray]) -> np.ndarray:
    for position, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise DataError(
                f"{name}: row {position} has {key} of shape {row.shape}, row 0 has "
                f"{rows[0].shape}; all rows need one shape"
            )
    return np.stack(rows)
