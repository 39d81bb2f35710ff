"""Tables: .csv and .parquet."""

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from influence_dag.data_settings import DataSettings
from influence_dag.errors import DataError
from influence_dag.sources.base import INPUT, Source, demand, listed


def read_csv(path: Path, name: str, data: DataSettings) -> Source:
    header = _csv_header(path)
    if data.id is None:
        raise DataError(
            f"{name}: a .csv needs `data.id`, the column of row ids, because an edited file "
            f"shifts positions; its columns are {listed(header)}"
        )
    demand(name, header, data.id, "id", "data.id")
    with warnings.catch_warnings():
        # pandas only warns of rows that are longer than the header, and cuts them off.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, index_col=False, encoding="utf-8-sig")
            # `007` and `NA` are ids as they stand: never parsed, never "missing".
            text = pd.read_csv(
                path,
                usecols=[data.id],
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
            raise DataError(f"{name}: not a well-formed .csv: {str(error).strip()}") from error
    frame[data.id] = text[data.id].str.strip()
    return _table(frame, name, data, lambda position: f"line {_csv_line(path, position)}")


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8: {error}") from error
    if not header:
        raise DataError(f"{path}: the file is empty; a header line and rows are needed")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{path}: line 1 names the column {repeated[0]!r} more than once")
    return header


def _csv_line(path: Path, position: int) -> int:
    """The line on which a row of the table starts: blank lines and quoted newlines count."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader, seen, start = csv.reader(lines), -2, 1
        for record in reader:
            seen += bool(record)
            if seen == position:
                return start
            start = reader.line_num + 1
    raise IndexError(position)


def read_parquet(path: Path, name: str, data: DataSettings) -> Source:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise DataError(
            f"{name}: reading .parquet needs pyarrow; install influence-dag[parquet]"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: not a readable .parquet file: {error}") from error
    if data.id is not None and data.id not in frame and data.id in frame.index.names:
        frame = frame.reset_index()
    return _table(frame, name, data, "row {}".format)


def _table(
    frame: pd.DataFrame, name: str, data: DataSettings, line_of: Callable[[int], str]
) -> Source:
    columns = list(map(str, frame.columns))
    frame = frame.set_axis(columns, axis=1)
    if data.id is not None:
        demand(name, columns, data.id, "id", "data.id")
    demand(name, columns, data.target, "target", "data.target")
    features = data.features.columns or [c for c in columns if c not in (data.id, data.target)]
    for column in features:
        demand(name, columns, column, "feature", "data.features.columns")
    ids = None if data.id is None else frame[data.id].to_numpy(object)
    source = Source(name, {}, np.empty(0), ids, line_of=line_of)
    numbers = [_numbers(source, pd.Series(frame[column])) for column in features]
    x = np.column_stack(numbers).astype(np.float64) if numbers else np.empty((len(frame), 0))
    target = _numbers(source, pd.Series(frame[data.target]))
    return Source(name, {INPUT: x}, target, ids, tuple(features), line_of)


def _numbers(source: Source, column: pd.Series) -> np.ndarray:
    """The column as int64 if all are whole numbers or booleans, else float64; empty is NaN."""
    if pd.api.types.is_integer_dtype(column) or pd.api.types.is_bool_dtype(column):
        if not column.isna().any():
            return column.to_numpy(np.int64, copy=True)
    elif not pd.api.types.is_numeric_dtype(column):
        text = column.map(str, na_action="ignore")
        column = pd.Series(pd.to_numeric(text, errors="coerce"))
        wrong = (column.isna() & text.notna()).to_numpy()
        if wrong.any():
            _not_a_number(source, str(column.name), text.to_numpy(object), wrong)
    return column.to_numpy(np.float64, copy=True, na_value=np.nan)


def _not_a_number(source: Source, column: str, seen: np.ndarray, wrong: np.ndarray) -> NoReturn:
    first = int(np.argmax(wrong))
    raise DataError(
        f"{source.name}: {source.row_name(first)}, column {column!r}: seen {seen[first]!r}, "
        f"expected a number ({int(wrong.sum())} such rows); encode text as numbers first"
    )
