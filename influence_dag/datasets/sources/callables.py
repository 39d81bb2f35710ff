"""Rows that code makes: `module:callable` → a map-style dataset of `(x, y)`, or a table."""

from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from influence_dag.datasets.sources.arrays import kept_array
from influence_dag.datasets.sources.base import Source, same_length
from influence_dag.datasets.sources.frames import is_table, read_table
from influence_dag.datasets.sources.map_style import Form
from influence_dag.datasets.sources.rereading import RereadRows
from influence_dag.datasets.sources.texts import is_text, numbers_or_words
from influence_dag.errors import DataError
from influence_dag.study.base import Split
from influence_dag.study.data import DataSettings
from influence_dag.study.imported import import_callable, own_default
from influence_dag.study.users_code import named_by
from influence_dag.texts import a_kind


def read_callable(name: str, data: DataSettings, which: Split, root: Path) -> Source:
    """The rows of what a callable returns, if they are the same when they are made again.

    A table is made twice; of a data set blocks are in memory, and rows are compared when they are
    read to be used. Raises `DataError` naming the first row that moved.
    """

    def make() -> Any:
        make = import_callable(name, root, f"data.{which}")
        wanted = "it is called without arguments and returns a data set or a table"
        with named_by(f"data.{which}: {name}", wanted, DataError), own_default(name, root):
            return make()

    weighted = data.weight is not None and which == "train"
    sizes = (3,) if weighted else (2,) if data.weight is None else (2, 3)
    target = data.target if data.target != type(data).model_fields["target"].default else None
    rows = RereadRows(make, Form(name, sizes, target, data.weight), data, which)
    if is_table(rows.dataset):
        return read_table(rows, name, data, which)
    _check_map_style(rows.dataset, name, which)
    ids, kept = _beside(rows.dataset, name, data)
    if ids is not None:
        rows.row_name = lambda row: f"row {row} (id {str(ids[row])!r})"
    rows.look_again = partial(_check_beside, data, which, name, ids, kept)
    rows.see()
    return same_length(
        Source(
            name,
            rows.inputs,
            numbers_or_words(rows.targets),
            ids,
            weights=rows.weights if weighted else None,
            kept=kept,
            text_of_target=(lambda: rows.targets) if is_text(rows.targets) else None,
            input_keys=rows.keys,
            not_finite=rows.not_finite,
            close=rows.close,
        )
    )


_NEARLY = {
    "LazyFrame": "; return .collect() of it",
    "DatasetDict": "; return one split of it: a callable for each of data.train and data.test",
}


def _check_map_style(dataset: Any, name: str, which: Split) -> None:
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if type(dataset).__name__ in _NEARLY or not map_style:
        raise DataError(
            f"data.{which}: {name} returned {a_kind(dataset)}; expected a map-style "
            "dataset with __len__ and __getitem__ yielding (x, y), or a table (of pandas, polars, "
            "Arrow, or a datasets.Dataset)" + _NEARLY.get(type(dataset).__name__, "")
        )
    with named_by(f"data.{which}: the length of {name}", "a number of rows is wanted", DataError):
        count = len(dataset)
    if count == 0:
        raise DataError(f"data.{which}: {name} is empty; at least one row is needed")


def _beside(
    dataset: Any, name: str, data: DataSettings
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Ids and columns that travel along, which are attributes of a data set."""
    ids = None if data.id is None else getattr(dataset, data.id, None)
    if data.id is not None and ids is None:
        raise DataError(f"{name}: the dataset has no attribute {data.id!r} (data.id) with row ids")
    kept = {}
    for column in data.keep:
        if not hasattr(dataset, column):
            raise DataError(
                f"{name}: the dataset has no attribute {column!r} (data.keep), one value a row"
            )
        kept[column] = kept_array(name, column, np.asarray(getattr(dataset, column)))
    return None if ids is None else np.asarray(ids), kept


def _check_beside(
    data: DataSettings,
    which: Split,
    name: str,
    ids: np.ndarray | None,
    kept: Mapping[str, np.ndarray],
    again: Any,
) -> None:
    """A `DataError` where a data set that was made anew names the same rows otherwise."""
    ids_now, kept_now = _beside(again, name, data)
    was, now = ({**k, str(data.id): i} for k, i in ((kept, ids), (kept_now, ids_now)))
    for column, values in was.items():
        if values is None:
            continue
        then, seen = (list(map(str, each.tolist())) for each in (values, np.asarray(now[column])))
        if then != seen:
            pairs = enumerate(zip_longest(then, seen, fillvalue="none"))
            row, (one, other) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"data.{which}: {name}: row {row} is the same when the data set is made again, and "
                f"its {column!r} is not ({one!r:.80}, then {other!r:.80}): drawn names would make "
                "every row a new one at each refresh; take what belongs to the row, or leave "
                f"data.{'id' if column == data.id else 'keep'} out"
            )
