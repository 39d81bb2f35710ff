"""Rows that code makes: `module:callable` → a map-style dataset of `(x, y)`."""

from pathlib import Path
from typing import Any

import numpy as np

from influence_dag.data_settings import DataSettings
from influence_dag.errors import DataError
from influence_dag.sources.arrays import kept_array
from influence_dag.sources.base import INPUT, Source, chosen, same_length
from influence_dag.sources.texts import numbers_or_words


def read_callable(name: str, data: DataSettings, which: str, root: Path) -> Source:
    from influence_dag.models import import_callable  # here: it imports torch

    dataset = import_callable(name, root, f"data.{which}")()
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"data.{which}: {name} returned a {type(dataset).__name__}; expected a map-style "
            "dataset with __len__ and __getitem__ yielding (x, y)"
        )
    if len(dataset) == 0:
        raise DataError(f"data.{which}: {name} is empty; at least one row is needed")
    weighted = data.weight is not None and which == "train"
    sizes = (3,) if weighted else (2,) if data.weight is None else (2, 3)
    items = [_item(dataset, name, row, sizes) for row in range(len(dataset))]
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


def _item(
    dataset: Any, name: str, row: int, sizes: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs by name, target and weight (1 where there is none) of a row, of so many parts."""
    item = dataset[row]
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
