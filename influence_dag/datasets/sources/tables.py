"""Tables: data frames, from `.parquet`, Arrow files or memory, their columns in their roles."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.arrays import columns_of_lists, demand_kept, source_of_lists
from influence_dag.datasets.sources.base import INPUT, Source, demand
from influence_dag.datasets.sources.columns import kept_label, numbers_of, plain_categories, told
from influence_dag.datasets.sources.numbers import decimal
from influence_dag.datasets.sources.texts import numbers_or_words
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings
from influence_dag.texts import literal

_OF_AN_INDEX = {"index", "level_0", "id"}
_NO_NAME = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")


def read_parquet(path: Path, name: str, data: DataSettings) -> Source:
    return _read_columns(pd.read_parquet, path, name, data)


def read_feather(path: Path, name: str, data: DataSettings) -> Source:
    """A table in an Arrow file: `.feather` or `.arrow`."""
    return _read_columns(pd.read_feather, path, name, data)


def _read_columns(
    read: Callable[[Path], pd.DataFrame], path: Path, name: str, data: DataSettings
) -> Source:
    try:
        frame = read(path)
        for place, dtype in enumerate(frame.dtypes):  # Arrow decodes texts when they are asked for
            if isinstance(dtype, pd.StringDtype):
                frame.isetitem(place, frame.iloc[:, place].astype(object))
    except ImportError as error:
        raise DataError(
            f"{name}: reading {path.suffix} needs pyarrow; install influence-dag[parquet]"
        ) from error
    except Exception as error:  # damage fails in many types
        said = str(error).strip() or type(error).__name__
        raise DataError(
            f"{name}: not a readable {path.suffix} file: {said:.300}; write it again"
        ) from error
    return frame_source(frame, name, data)


def frame_source(frame: pd.DataFrame, name: str, data: DataSettings) -> Source:
    """The rows of a data frame; its index is the id where that has the id's name.

    One whose cells are lists, such as embeddings or tokens, is arrays.
    """
    if data.id is not None and data.id not in frame and data.id in frame.index.names:
        frame = frame.reset_index()
    header = list(map(str, frame.columns))
    if repeated := sorted({column for column in header if header.count(column) > 1}):
        twice = literal(repeated[0])
        raise DataError(f"{name}: the column {twice!r} is there more than once; rename one")
    check_names(name, header, data)
    if wide := columns_of_lists(frame):
        return source_of_lists(frame, wide, name, data)
    return table(frame, name, data, "row {}".format)


def check_names(name: str, header: Sequence[str], data: DataSettings) -> None:
    """A `DataError` for a column without a name that would be taken for a feature.

    Saved tables have one where the row numbers of a data frame were saved with it.
    """
    if data.features.columns is not None:
        return
    nameless = [each for each in header if each not in data.roles and _NO_NAME.fullmatch(each)]
    if nameless:
        position = list(header).index(nameless[0])
        shown = f" ({nameless[0]!r})" if nameless[0].strip() else ""
        cause = (
            "row numbers that were saved along are no feature; save without them (pandas: "
            "`frame.to_csv(path, index=False)`)"
        )
        if position and position + 1 == len(header) and not shown:
            cause += ", or take off the separator that ends each line, if it is that"
        raise DataError(
            f"{name}: column {position + 1} of {len(header)}{shown} has no name of its own: "
            f"{cause}, give the column a name, or list the features in data.features.columns"
        )


def table(
    frame: pd.DataFrame,
    name: str,
    data: DataSettings,
    line_of: Callable[[int], str],
    text_of: Callable[[str], np.ndarray] | None = None,
) -> Source:
    """The columns in their roles; `text_of` has a column as it stands in the file."""
    columns = list(map(str, frame.columns))
    frame = frame.set_axis(columns, axis=1)
    _demand_roles(name, columns, data)
    features = data.features.columns or [c for c in columns if c not in data.roles]
    if data.images is not None:
        features = ()
    ids = None if data.id is None else frame[data.id].to_numpy(object)
    source = Source(name, {}, np.empty(0), ids, line_of=line_of)
    mark = "." if text_of is None else data.csv.decimal
    read = partial(numbers_of, source, frame, text_of, mark=mark)
    x = [decimal(read(column), **told(source, column)) for column in features]
    if data.features.columns is None:
        _check_row_numbers(name, dict(zip(features, x, strict=True)))
    kept = data.keep
    if data.images is not None or (data.features.columns and not kept):
        kept = tuple(dict.fromkeys((*kept, *_texts_beside(frame, data))))
    weights, no_weights = _weights(columns, data.weight, read)
    return Source(
        name,
        {INPUT: np.column_stack(x) if x else np.empty((len(frame), 0))},
        _target(frame, data.target, read),
        ids,
        tuple(features),
        line_of,
        weights,
        {column: kept_label(frame, column, text_of) for column in kept},
        lambda: frame[data.target].to_numpy(object) if text_of is None else text_of(data.target),
        no_weights=no_weights,
    )


def _weights(
    columns: Sequence[str], name: str | None, read: Callable[[str], np.ndarray]
) -> tuple[np.ndarray | None, DataError | None]:
    """The column, or what is wrong with it: testing rows may have one that nobody uses."""
    if name is None or name not in columns:
        return None, None
    try:
        return read(name), None
    except DataError as error:
        return None, error


def _check_row_numbers(name: str, features: Mapping[str, np.ndarray]) -> None:
    """A `DataError` for ids that nobody named, and the numbers of a data frame's rows."""
    for column in _OF_AN_INDEX & features.keys():
        values = features[column]
        if len(values) > 1 and len(np.unique(values)) == len(values) and not (values % 1).any():
            raise DataError(
                f"{name}: column {column!r} has another whole number in each row, as ids have and "
                "numbers of rows that pandas has made a column (`frame.reset_index()`), which are "
                f"no feature: say data.id: {column}, leave it out (`reset_index(drop=True)`), or "
                "list the features in data.features.columns"
            )


def _demand_roles(name: str, columns: list[str], data: DataSettings) -> None:
    if data.id is not None:
        demand(name, columns, data.id, "id", "data.id")
    demand(name, columns, data.target, "target", "data.target")
    for column in data.features.columns or ():
        demand(name, columns, column, "feature", "data.features.columns")
    demand_kept(name, columns, data)


def _target(frame: pd.DataFrame, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Numbers, truth values, or words in an object array."""
    column = plain_categories(frame, name)
    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return column.to_numpy(bool, copy=True)
    if pd.api.types.is_numeric_dtype(column):
        return read(name)
    values = numbers_or_words(column.to_numpy(object))
    return values if values.dtype.kind == "O" else read(name)


def _texts_beside(frame: pd.DataFrame, data: DataSettings) -> tuple[str, ...]:
    """The columns of text that have no other role."""
    rest = [c for c in frame if c not in (*data.roles, *(data.features.columns or ()))]
    return tuple(
        str(column)
        for column in rest
        if not pd.api.types.is_numeric_dtype(plain_categories(frame, column))
    )
