"""Files and data sets as they are: named arrays, and how to speak of one of their rows.

Every format comes out as a `Source`; what a study demands of it is checked in `datasets`.
"""

import csv
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from influence_dag.errors import DataError
from influence_dag.study import DataSettings

INPUT = "x"  # the name of the input when there is only one


@dataclass(frozen=True, eq=False)
class Source:
    """What one split's file holds: inputs and target with the row as leading axis.

    `columns` are the feature columns of a table, `ids` is None where the position is the id and
    `line_of(position)` is where a person finds a row, for example `"line 7"`.
    """

    name: str
    inputs: dict[str, np.ndarray]
    target: np.ndarray
    ids: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    line_of: Callable[[int], str] = "row {}".format

    def row_name(self, position: int) -> str:
        """`line 7 (id 'train-0005')`."""
        identity = "" if self.ids is None else f" (id {str(self.ids[position])!r})"
        return f"{self.line_of(position)}{identity}"


def is_callable_name(name: str) -> bool:
    """True for `module:callable`, False for the path of a file."""
    return ":" in name and "/" not in name


def read_source(data: DataSettings, which: str, root: Path) -> Source:
    """Read the split `which` of the settings; `DataError` says what a file lacks."""
    name = getattr(data, which)
    if is_callable_name(name):
        return _read_callable(name, data, which, root)
    path = existing_path(name, which, root)
    readers = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".npz": _read_npz,
        ".zarr": _read_zarr,
    }
    if path.suffix not in readers:
        raise DataError(
            f"data.{which}: {name} ends in {path.suffix or 'nothing'!r}; "
            f"known are {', '.join(readers)} and 'module:callable'"
        )
    return readers[path.suffix](path, name, data)


def existing_path(name: str, which: str, root: Path) -> Path:
    """The file or folder of that name, relative to `root`."""
    path = root / name
    if not path.exists():
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"data.{which}: no file {path}{_did_you_mean(path.name, neighbours)}")
    return path


# Tables


def _read_csv(path: Path, name: str, data: DataSettings) -> Source:
    header = _csv_header(path)
    if data.id is None:
        raise DataError(
            f"{name}: a .csv needs `data.id`, the column of row ids, because an edited file "
            f"shifts positions; its columns are {_listed(header)}"
        )
    _demand(name, header, data.id, "id", "data.id")
    with warnings.catch_warnings():
        # pandas only warns of rows that are longer than the header, and cuts them off.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(
                path,
                index_col=False,
                encoding="utf-8-sig",
                converters={data.id: str.strip},  # `007` and `NA` are ids as they stand
                float_precision="round_trip",
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
            raise DataError(f"{name}: not a well-formed .csv: {str(error).strip()}") from error
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


def _read_parquet(path: Path, name: str, data: DataSettings) -> Source:
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
    if data.id is not None:
        _demand(name, columns, data.id, "id", "data.id")
    _demand(name, columns, data.target, "target", "data.target")
    features = data.features.columns or [c for c in columns if c not in (data.id, data.target)]
    for column in features:
        _demand(name, columns, column, "feature", "data.features.columns")
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
            return column.to_numpy(np.int64)
    elif not pd.api.types.is_numeric_dtype(column):
        text = column.map(str, na_action="ignore")
        column = pd.Series(pd.to_numeric(text, errors="coerce"))
        wrong = (column.isna() & text.notna()).to_numpy()
        if wrong.any():
            _not_a_number(source, str(column.name), text.to_numpy(object), wrong)
    return column.to_numpy(np.float64, na_value=np.nan)


def _not_a_number(source: Source, column: str, seen: np.ndarray, wrong: np.ndarray) -> NoReturn:
    first = int(np.argmax(wrong))
    raise DataError(
        f"{source.name}: {source.row_name(first)}, column {column!r}: seen {seen[first]!r}, "
        f"expected a number ({int(wrong.sum())} such rows); encode text as numbers first"
    )


# Arrays


def _read_npz(path: Path, name: str, data: DataSettings) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: not a readable .npz of plain arrays: {error}") from error
    return _arrays(arrays, name, data)


def _read_zarr(path: Path, name: str, data: DataSettings) -> Source:
    import zarr  # here: the formats that most studies use do not need it

    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{name}: not a readable Zarr group: {error}") from error
    return _arrays({key: np.asarray(array[...]) for key, array in group.arrays()}, name, data)


def _arrays(arrays: dict[str, np.ndarray], name: str, data: DataSettings) -> Source:
    """The target, ids where there are some, and every other array as an input."""
    ids = arrays.pop("id", None) if data.id is None else None
    if data.id is not None:
        _demand(name, arrays, data.id, "id", "data.id")
        ids = arrays.pop(data.id)
    _demand(name, arrays, data.target, "target", "data.target")
    target = arrays.pop(data.target)
    inputs = _chosen(name, arrays, data.features.columns)
    if len(inputs) == 1:
        inputs = {INPUT: next(iter(inputs.values()))}
    return _same_length(Source(name, inputs, target, ids))


def _chosen(
    name: str, arrays: Mapping[str, np.ndarray], columns: Iterable[str] | None
) -> dict[str, np.ndarray]:
    for column in columns or ():
        _demand(name, arrays, column, "input", "data.features.columns")
    if not arrays:
        raise DataError(f"{name}: no array of inputs beside the target and the ids")
    return {column: arrays[column] for column in columns or arrays}


def _same_length(source: Source) -> Source:
    arrays = {**source.inputs, "target": source.target}
    if source.ids is not None:
        arrays["id"] = source.ids
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise DataError(
            f"{source.name}: the arrays disagree on the number of rows: "
            f"{', '.join(f'{name} {length}' for name, length in lengths.items())}"
        )
    return source


# Callables


def _read_callable(name: str, data: DataSettings, which: str, root: Path) -> Source:
    from influence_dag.models import import_callable  # here: it imports torch

    dataset = import_callable(name, root, f"data.{which}")()
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"data.{which}: {name} returned a {type(dataset).__name__}; expected a map-style "
            "dataset with __len__ and __getitem__ yielding (x, y)"
        )
    if len(dataset) == 0:
        raise DataError(f"data.{which}: {name} is empty; at least one row is needed")
    inputs, targets = zip(*(_item(dataset, name, row) for row in range(len(dataset))), strict=True)
    ids = None if data.id is None else getattr(dataset, data.id, None)
    if data.id is not None and ids is None:
        raise DataError(f"{name}: the dataset has no attribute {data.id!r} (data.id) with row ids")
    arrays = {key: _stack(name, key, [row[key] for row in inputs]) for key in inputs[0]}
    chosen = _chosen(name, arrays, data.features.columns)
    target = _stack(name, "y", list(targets))
    return _same_length(Source(name, chosen, target, None if ids is None else np.asarray(ids)))


def _item(dataset: Any, name: str, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    item = dataset[row]
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise DataError(f"{name}: row {row} is a {type(item).__name__}; expected a pair (x, y)")
    x, y = item
    if isinstance(x, tuple | list):
        raise DataError(
            f"{name}: row {row} has a {type(x).__name__} as x; expected one tensor, or a dict "
            "whose names are the arguments of the module's forward"
        )
    named = x if isinstance(x, dict) else {INPUT: x}
    return {key: np.asarray(value) for key, value in named.items()}, np.asarray(y)


def _stack(name: str, key: str, rows: list[np.ndarray]) -> np.ndarray:
    for position, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise DataError(
                f"{name}: row {position} has {key} of shape {row.shape}, row 0 has "
                f"{rows[0].shape}; all rows need one shape"
            )
    return np.stack(rows)


# Words


def _demand(name: str, columns: Iterable[str], column: str, role: str, field: str) -> None:
    if column not in columns:
        raise DataError(
            f"{name}: no {role} column {column!r} ({field})"
            f"{_did_you_mean(column, columns)}; it has {_listed(columns)}"
        )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
