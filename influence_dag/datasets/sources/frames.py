"""Tables that code makes: data frames of pandas and polars, Arrow's, Hugging Face's data sets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.rereading import RereadRows, moved_rows
from influence_dag.datasets.sources.row_keys import equal_rows, value_keys
from influence_dag.datasets.sources.tables import frame_source
from influence_dag.errors import DataError
from influence_dag.study.base import Split
from influence_dag.study.data import DataSettings


def is_table(dataset: Any) -> bool:
    """Whether it is a data frame, or turns itself into one: polars, Arrow, `datasets`."""
    if isinstance(dataset, pd.DataFrame):
        return True
    if not hasattr(dataset, "to_pandas"):
        return False
    return hasattr(dataset, "column_names") or hasattr(dataset, "columns")


def read_table(made: RereadRows, name: str, data: DataSettings, which: Split) -> Source:
    """The rows of a table, made twice: of the first hashes are kept, not the table."""
    before = _seen(_source(made.dataset, name, data))
    made.close()
    source = _source(made.made(), name, data)
    now, count = _seen(source), len(before["target"])
    same = np.zeros(count, bool)
    if {key: part.shape[1:] for key, part in now.items()} == {
        key: part.shape[1:] for key, part in before.items()
    }:
        there = min(count, len(source.target))
        same[:there] = True
        for key, part in before.items():
            same[:there] &= equal_rows(part[:there], now[key][:there])
    if not same.all():
        raise moved_rows(which, name, np.flatnonzero(~same).tolist(), count, source.row_name)
    return source


def _seen(source: Source) -> dict[str, np.ndarray]:
    """What has to be the same of each row when it is made again, its inputs as their hashes."""
    beside = {"ids": source.ids, "weights": source.weights}
    parts = {key: each for key, each in beside.items() if each is not None}
    parts |= {f"kept {column}": values for column, values in source.kept.items()}
    return parts | {"target": source.target, f"inputs {list(source.inputs)}": _keys(source)}


def _keys(source: Source) -> np.ndarray:
    """Hashes of rows whose inputs are numbers; others are refused for it."""
    x = {name: np.asarray(values) for name, values in source.inputs.items()}
    if any(values.dtype.kind not in "fiub" for values in x.values()):
        return np.zeros((len(source.target), 1), np.uint8)
    return value_keys(x)


def _source(dataset: Any, name: str, data: DataSettings) -> Source:
    table = dataset if isinstance(dataset, pd.DataFrame) else dataset.to_pandas()
    if not len(table):
        raise DataError(f"{name}: the table has no rows; at least one is needed")
    source = frame_source(table, name, data)
    return _by_name(source, _class_names(dataset, data.target), data.classes)


def _by_name(
    source: Source, names: tuple[str, ...] | None, classes: tuple[str, ...] | None
) -> Source:
    """The source with the names that its whole numbers stand for as its target.

    Another table, or the settings, may have them in another order. Where the settings have none of
    them they name the numbers anew.
    """
    renamed = bool(classes) and set(classes or ()).isdisjoint(names or ())
    if names is None or renamed or source.target.dtype.kind not in "iu":
        return replace(source, classes=names)
    known = dict(enumerate(names))
    words = np.array([known.get(k, str(k)) for k in source.target.tolist()], object)
    return replace(source, target=words, text_of_target=None, classes=names)


def _class_names(dataset: Any, target: str) -> tuple[str, ...] | None:
    """What the whole numbers of the target are called, as a `ClassLabel` of `datasets` says."""
    features = getattr(dataset, "features", None)
    names = getattr(features.get(target), "names", None) if isinstance(features, Mapping) else None
    return tuple(str(name).strip() for name in names) if names else None
