"""Tables as text: `.csv`, packed or not."""

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

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
    _check_quotes(name, pd.Series(frame[data.id]), len(header), content, form)
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
    name: str, ids: pd.Series, columns: int, content: bytes, form: CsvSettings
) -> None:
    """A `DataError` for an id that holds a whole row, as where a quote is never closed.

    In a column of numbers such a cell is no number; an id may hold anything.
    """
    for position in np.flatnonzero(ids.str.contains("\n", regex=False, na=False)).tolist():
        lines = str(ids.iloc[position]).splitlines()
        if any(line.count(form.separator) >= columns - 1 for line in lines):
            raise DataError(
                f"{name}: line {_line(content, position, form)}: the id is {len(lines)} lines "
                "long and holds whole rows: a quote is opened and not closed; close it, or double "
                "it where it belongs to the text"
            )


def _frame(
    content: bytes, name: str, header: Sequence[str], text: str, form: CsvSettings
) -> pd.DataFrame:
    """The table, with one column as the text that stands in it.

    `007` and `NA` are ids as they stand: never parsed, never "missing".
    """
    with warnings.catch_warnings():
        # pandas only warns of rows that are longer than the header, and cuts them off.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                io.BytesIO(content),
                index_col=False,
                sep=form.separator,
                decimal=form.decimal,
                encoding=form.encoding,
                dtype={text: str},
                keep_default_na=False,
                na_values={column: list(EMPTY_CELLS) for column in header if column != text},
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
            seen = _too_long(content, len(header), form) or str(error).strip()
            raise DataError(f"{name}: not a well-formed .csv: {seen}") from error


def _too_long(content: bytes, columns: int, form: CsvSettings) -> str | None:
    """The first line that has more cells than the header; the parser counts no quoted newlines."""
    with suppress(UnicodeError):
        for line, record in _rows(content, form):
            if len(record) > columns:
                return (
                    f"line {line} has {len(record)} cells, and the header names {columns} columns; "
                    f"take off what is too much, or quote cells that hold a {form.separator!r}"
                )
    return None


def _header(content: bytes, path: Path, form: CsvSettings) -> list[str]:
    try:
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


def _rows(content: bytes, form: CsvSettings) -> Iterator[tuple[int, list[str]]]:
    """Cells with the line on which they start: blank lines and quoted newlines count."""
    text = io.TextIOWrapper(io.BytesIO(content), form.encoding, newline="")
    reader, start = csv.reader(text, delimiter=form.separator), 1
    limit = csv.field_size_limit(len(content))  # else texts of 128 kB are an error
    try:
        for record in reader:
            if record:
                yield start, record
            start = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _line(content: bytes, position: int, form: CsvSettings) -> int:
    """The line on which a row of the table starts, behind the header."""
    return next(islice(_rows(content, form), position + 1, None))[0]
