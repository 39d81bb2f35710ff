"""Tables as text: `.csv`, packed or not."""

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.base import Source, demand
from influence_dag.datasets.sources.packed import content_of
from influence_dag.datasets.sources.tables import check_names, table
from influence_dag.datasets.sources.texts import EMPTY_CELLS
from influence_dag.errors import DataError
from influence_dag.study.data import CsvSettings, DataSettings
from influence_dag.texts import listed


def read_csv(path: Path, name: str, data: DataSettings) -> Source:
    content, form = content_of(path, name), data.csv
    header = _header(content, path, form)
    if data.id is None:
        raise DataError(
            f"{name}: a .csv needs `data.id`, the column of row ids, because an edited file "
            f"shifts positions; its columns are {listed(header)}"
        )
    _check_separator(name, header, data)
    check_names(name, header, data)
    demand(name, header, data.id, "id", "data.id")
    frame = _frame(content, name, header, data.id, form)
    _check_quotes(name, frame, data.id, content, form)
    frame[data.id] = frame[data.id].str.strip()
    return table(
        frame,
        name,
        data,
        lambda position: f"line {_line(content, position, form)}",
        lambda column: _frame(content, name, header, column, form)[column].to_numpy(object),
    )


def _check_separator(name: str, header: list[str], data: DataSettings) -> None:
    """A `DataError` for a header in one piece that another separator would cut."""
    wanted = {data.id, data.target}
    for other in ",;\t|":
        if other != data.csv.separator and wanted <= set(header[0].split(other)):
            raise DataError(
                f"{name}: line 1 is one column, {header[0]!r:.80}; its separator seems to be "
                f"{other!r}: data.csv: {{separator: {other!r}}} (and decimal: ',' where numbers "
                "are written so)"
            )


def _check_quotes(
    name: str, frame: pd.DataFrame, id: str, content: bytes, form: CsvSettings
) -> None:
    """A `DataError` for a text that holds whole rows, as where a quote is never closed.

    In a column of numbers such a cell is no number. An id has no lines that could be rows; of
    other texts the lines would be rows by themselves, with numbers where columns have them.
    """
    for place, column in enumerate(frame):
        if pd.api.types.is_numeric_dtype(frame[column]):
            continue
        texts = frame[column].astype(str)
        for position in np.flatnonzero(texts.str.contains("\n", regex=False)).tolist():
            rows = [line.split(form.separator) for line in texts.iloc[position].splitlines()]
            whole = max(map(len, rows)) >= frame.shape[1]
            if (column == id and whole) or _are_rows(rows, frame, place, form.decimal):
                what = "id" if column == id else f"text in column {column!r}"
                raise DataError(
                    f"{name}: line {_line(content, position, form)}: the {what} is {len(rows)} "
                    "lines long and holds whole rows: a quote is opened and not closed; close it, "
                    "or double it where it belongs to the text"
                )


def _are_rows(rows: list[list[str]], frame: pd.DataFrame, place: int, decimal: str) -> bool:
    """Whether cells are the end of a row, whole rows, and the beginning of another.

    A single number in its place may be one of the text's.
    """
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    spans = [numeric[place:], *([numeric] * (len(rows) - 2)), numeric[: place + 1]]
    if list(map(len, rows)) != list(map(len, spans)):
        return False
    pairs = zip(chain(*rows), chain(*spans), strict=True)
    cells = pd.Series([cell.replace(decimal, ".") for cell, is_number in pairs if is_number])
    numbers = np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)
    return len(numbers) > 1 and not np.isnan(numbers).any()


def _frame(
    content: bytes, name: str, header: Sequence[str], text: str, form: CsvSettings
) -> pd.DataFrame:
    """The table, with one column as the text that stands in it.

    `007` and `NA` are ids as they stand: never parsed, never "missing".
    """
    options: dict[str, Any] = {
        "index_col": False,
        "sep": form.separator,
        "decimal": form.decimal,
        "encoding": form.encoding,
        "dtype": {text: str},
        "keep_default_na": False,
        "na_values": {column: list(EMPTY_CELLS) for column in header if column != text},
    }
    with warnings.catch_warnings():
        # pandas only warns of rows that are longer than the header, and cuts them off.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        warnings.simplefilter("error", pd.errors.DtypeWarning)
        try:
            with suppress(pd.errors.DtypeWarning):  # types by pieces of a column: 7 and then 007
                return pd.read_csv(io.BytesIO(content), **options)
            return pd.read_csv(io.BytesIO(content), **options, low_memory=False)
        except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
            seen = _too_long(content, len(header), form) or str(error).strip()
            raise DataError(f"{name}: not a well-formed .csv: {seen}") from error


def _too_long(content: bytes, columns: int, form: CsvSettings) -> str | None:
    """The first line that has more cells than the header; the parser counts no quoted newlines."""
    with suppress(UnicodeError), long_cells(len(content)):
        for line, record in _rows(content, form):
            if len(record) > columns:
                return (
                    f"line {line} has {len(record)} cells, and the header names {columns} columns; "
                    f"take off what is too much, or quote cells that hold a {form.separator!r}"
                )
    return None


def _header(content: bytes, path: Path, form: CsvSettings) -> list[str]:
    try:
        with long_cells(len(content)):
            _, header = next(_rows(content, form), (1, []))
    except UnicodeError as error:
        named = "UTF-8" if form.encoding == "utf-8-sig" else form.encoding
        raise DataError(
            f"{path}: not a text file in {named}: {error}; data.csv: {{encoding: …}} names another "
            "(latin-1, cp1252, utf-16)"
        ) from error
    if not header:
        raise DataError(f"{path}: the file is empty; a header line and rows are needed")
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(
            f"{path}: line 1 names the column {repeated[0]!r} more than once; rename one"
        )
    return header


@contextmanager
def long_cells(size: int) -> Iterator[None]:
    """Inside, cells may have so many characters; else those of 128 kB are an error.

    The limit is the process's: it is never lowered, and readers in several threads take turns.
    """
    with _LIMIT:
        limit = csv.field_size_limit()
        csv.field_size_limit(max(limit, size))
        try:
            yield
        finally:
            csv.field_size_limit(limit)


_LIMIT = Lock()


def _rows(content: bytes, form: CsvSettings) -> Iterator[tuple[int, list[str]]]:
    """Cells with the line on which they start: blank lines and quoted newlines count.

    A line of spaces is blank, as for pandas.
    """
    text = io.TextIOWrapper(io.BytesIO(content), form.encoding, newline="")
    reader, start = csv.reader(text, delimiter=form.separator), 1
    for record in reader:
        if record and not (len(record) == 1 and record[0].isspace()):
            yield start, record
        start = reader.line_num + 1


def _line(content: bytes, position: int, form: CsvSettings) -> int:
    """The line on which a row of the table starts, behind the header."""
    with long_cells(len(content)):
        return next(islice(_rows(content, form), position + 1, None))[0]
