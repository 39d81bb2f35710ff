"""Tables: .csv, .parquet, Arrow files and data frames."""

import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.arrays import columns_of_lists, source_of_lists
from influence_dag.datasets.sources.base import INPUT, Source, demand, listed
from influence_dag.datasets.sources.numbers import EXACT, decimal, from_text, whole
from influence_dag.datasets.sources.texts import EMPTY_CELLS, numbers_or_words, texts
from influence_dag.errors import DataError
from influence_dag.study.data import CsvSettings, DataSettings
from influence_dag.texts import literal

MOST_UNPACKED = 100  # times the packed size; tables are packed to a tenth or so
LEAST_LIMIT = 2**26  # bytes that are unpacked whatever the packed size
_NO_NAME = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")


def read_csv(path: Path, name: str, data: DataSettings) -> Source:
    content, form = _content(path, name), data.csv
    header = _csv_header(content, path, form)
    if data.id is None:
        raise DataError(
            f"{name}: a .csv needs `data.id`, the column of row ids, because an edited file "
            f"shifts positions; its columns are {listed(header)}"
        )
    _check_separator(name, header, data)
    _check_names(name, header, data)
    demand(name, header, data.id, "id", "data.id")
    frame = _frame(content, name, header, data.id, form)
    _check_quotes(name, pd.Series(frame[data.id]), len(header), content, form)
    frame[data.id] = frame[data.id].str.strip()
    return _table(
        frame,
        name,
        data,
        lambda position: f"line {_csv_line(content, position, form)}",
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
                f"{name}: line {_csv_line(content, position, form)}: the id is {len(lines)} lines "
                "long and holds whole rows: a quote is opened and not closed; close it, or double "
                "it where it belongs to the text"
            )


def _content(path: Path, name: str) -> bytes:
    """The file's bytes, unpacked, read once: values, ids and lines are of the same moment."""
    try:
        return _unpacked(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name}: not a readable file: {said}") from error


def _unpacked(path: Path) -> bytes:
    """A file's bytes; those of what is packed in a `.gz` or `.zst`."""
    content = path.read_bytes()
    most = max(LEAST_LIMIT, MOST_UNPACKED * len(content))
    if path.suffix == ".gz":
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            return _up_to(most, stream)
    if path.suffix != ".zst":
        return content
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(
            f"{path}: reading .zst needs pyarrow; install influence-dag[parquet]"
        ) from error
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return _up_to(most, stream)


def _up_to(most: int, stream: Any) -> bytes:
    """All of a stream, unless that is more than it can honestly be."""
    parts, size = [], 0
    while part := stream.read(2**24):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(
                f"it unpacks to more than {MOST_UNPACKED} times its size, as tables do not; unpack "
                "it yourself where it is right"
            )
    return b"".join(parts)


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
            raise DataError(f"{name}: not a well-formed .csv: {str(error).strip()}") from error


def _csv_header(content: bytes, path: Path, form: CsvSettings) -> list[str]:
    try:
        header = next(_records(content, form), [])
    except UnicodeError as error:
        named = "UTF-8" if form.encoding == "utf-8-sig" else form.encoding
        raise DataError(
            f"{path}: not a text file in {named}: {error}; data.csv: {{encoding: …}} names another "
            "(latin-1, cp1252, utf-16)"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: line 1 is no header of a .csv: {error}") from error
    if not header:
        raise DataError(f"{path}: the file is empty; a header line and rows are needed")
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(
            f"{path}: line 1 names the column {repeated[0]!r} more than once; rename one"
        )
    return header


def _records(content: bytes, form: CsvSettings):
    text = io.TextIOWrapper(io.BytesIO(content), form.encoding, newline="")
    return csv.reader(text, delimiter=form.separator)


def _csv_line(content: bytes, position: int, form: CsvSettings) -> int:
    """The line on which a row of the table starts: blank lines and quoted newlines count."""
    reader, seen, start = _records(content, form), -2, 1
    for record in reader:
        seen += bool(record)
        if seen == position:
            return start
        start = reader.line_num + 1
    raise IndexError(position)


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
    except ImportError as error:
        raise DataError(
            f"{name}: reading {path.suffix} needs pyarrow; install influence-dag[parquet]"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: not a readable {path.suffix} file: {error}; write it again"
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
    _check_names(name, header, data)
    if wide := columns_of_lists(frame):
        return source_of_lists(frame, wide, name, data)
    return _table(frame, name, data, "row {}".format)


def _check_names(name: str, header: Sequence[str], data: DataSettings) -> None:
    """A `DataError` for a column without a name that would be taken for a feature.

    Saved tables have one where the row numbers of a data frame were saved with it.
    """
    if data.features.columns is not None:
        return
    nameless = [each for each in header if each not in data.roles and _NO_NAME.fullmatch(each)]
    if nameless:
        position = list(header).index(nameless[0])
        shown = f" ({nameless[0]!r})" if nameless[0].strip() else ""
        raise DataError(
            f"{name}: column {position + 1} of {len(header)}{shown} has no name of its own: row "
            "numbers that were saved along are no feature; save without them (pandas: "
            "`frame.to_csv(path, index=False)`), give the column a name, or list the features in "
            "data.features.columns"
        )


def _table(
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
        features = ()  # the pictures are
    ids = None if data.id is None else frame[data.id].to_numpy(object)
    source = Source(name, {}, np.empty(0), ids, line_of=line_of)
    read = partial(_column, source, frame, text_of)
    x = [decimal(read(column), **_told(source, column)) for column in features]
    kept = data.keep
    if data.images is not None or (data.features.columns and not kept):
        kept = tuple(dict.fromkeys((*kept, *_texts_beside(frame, data))))
    return Source(
        name,
        {INPUT: np.column_stack(x) if x else np.empty((len(frame), 0))},
        _target(frame, data.target, read),
        ids,
        tuple(features),
        line_of,
        read(data.weight) if data.weight in columns else None,
        {column: _kept(frame, column) for column in kept},
        lambda: frame[data.target].to_numpy(object) if text_of is None else text_of(data.target),
    )


def _demand_roles(name: str, columns: list[str], data: DataSettings) -> None:
    if data.id is not None:
        demand(name, columns, data.id, "id", "data.id")
    demand(name, columns, data.target, "target", "data.target")
    for column in data.features.columns or ():
        demand(name, columns, column, "feature", "data.features.columns")
    for column in data.keep:
        demand(name, columns, column, "kept", "data.keep")


def _target(frame: pd.DataFrame, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Numbers, truth values, or words in an object array."""
    column = _plain_categories(frame, name)
    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return column.to_numpy(bool, copy=True)
    if pd.api.types.is_numeric_dtype(column):
        return read(name)
    found = numbers_or_words(column.to_numpy(object))
    return found if found.dtype.kind == "O" else read(name)


def _texts_beside(frame: pd.DataFrame, data: DataSettings) -> tuple[str, ...]:
    """The columns of text that have no other role."""
    rest = [c for c in frame if c not in (*data.roles, *(data.features.columns or ()))]
    return tuple(
        str(column)
        for column in rest
        if not pd.api.types.is_numeric_dtype(_plain_categories(frame, column))
    )


def _kept(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A column as a label: numbers and truth values as they are, anything else as text."""
    column = _plain_categories(frame, name)
    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return column.to_numpy(bool, copy=True)
    if pd.api.types.is_integer_dtype(column) and not column.isna().any():
        return _plain(column)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, copy=True, na_value=np.nan)
    return texts(column.to_numpy(object))


def _plain_categories(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column; one of categories as what the categories are."""
    column = pd.Series(frame[name])
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    return column.astype(object).infer_objects()


def _told(source: Source, column: str) -> dict[str, Any]:
    return {"name": f"column {column!r}", "row_name": source.place_of}


def _column(
    source: Source,
    frame: pd.DataFrame,
    text_of: Callable[[str], np.ndarray] | None,
    name: str,
) -> np.ndarray:
    """The column as int64 if all are whole numbers or booleans, else float64; empty is NaN."""
    column = _plain_categories(frame, name)
    is_whole = pd.api.types.is_integer_dtype(column) or pd.api.types.is_bool_dtype(column)
    if is_whole and not column.isna().any():
        return whole(_plain(column), **_told(source, name))
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, copy=True, na_value=np.nan)
        if text_of is not None and (np.abs(numbers) >= EXACT).any():
            from_text(text_of(name), numbers, **_told(source, name))
        return numbers
    return _parsed(source, name, column)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers without a gap in the numpy type of their width."""
    unsigned = str(column.dtype).lower().startswith("uint64")
    return column.to_numpy(np.uint64 if unsigned else np.int64, copy=True)


def _parsed(source: Source, name: str, column: pd.Series) -> np.ndarray:
    """The numbers that stand in a column of texts."""
    text = column.map(str, na_action="ignore")
    numbers = pd.Series(pd.to_numeric(text, errors="coerce"))
    wrong = (numbers.isna() & text.notna()).to_numpy()
    if wrong.any():
        _not_a_number(source, name, text.to_numpy(object), wrong)
    values = numbers.to_numpy(np.float64, copy=True, na_value=np.nan)
    from_text(text.to_numpy(object), values, **_told(source, name))
    return values


_WITH_COMMAS = re.compile(r"[-+]?\d+(,\d+)+(\.\d*)?")


def _not_a_number(source: Source, column: str, seen: np.ndarray, wrong: np.ndarray) -> NoReturn:
    first = int(np.argmax(wrong))
    cure = f"encode text as numbers first, or let the column travel along: data.keep: [{column}]"
    if _WITH_COMMAS.fullmatch(str(seen[first]).strip()):
        cure = "decimal commas: data.csv: {decimal: ','}; at thousands write none"
    raise DataError(
        f"{source.name}: {source.row_name(first)}, column {column!r}: seen {seen[first]!r}, "
        f"expected a number ({int(wrong.sum())} such rows); {cure}"
    )
