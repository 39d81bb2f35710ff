"""What `init` finds in the files that it is given: columns, ids, texts, arrays."""

import csv
import io
import os
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import pandas as pd

from influence_dag.datasets.sources.arrays import columns_of_lists
from influence_dag.datasets.sources.base import demand, did_you_mean
from influence_dag.datasets.sources.csv_files import long_cells
from influence_dag.datasets.sources.packed import content_of
from influence_dag.datasets.sources.tables import check_names
from influence_dag.datasets.sources.texts import TEXT_KINDS
from influence_dag.errors import DataError
from influence_dag.starting.given import Plan, Start
from influence_dag.starting.pictures import look_at_pictures, look_at_some, pictures_of
from influence_dag.study.base import is_callable_name
from influence_dag.study.data import DataSettings

TEXTS = (".csv", ".csv.gz", ".csv.zst")
TABLES = (*TEXTS, ".parquet", ".feather", ".arrow")
IDS = ("id", "row_id", "rowid", "uuid", "index", "key")


def look_at_files(start: Start, folder: Path, plan: Plan) -> None:
    """Where the rows are, ids, and the columns that are no features.

    Raises `DataError` for files that are not there, and for a target or an id that they lack.
    """
    paths = {which: _path(start, which) for which in ("train", "test")}
    for which, path in paths.items():
        name = getattr(start, which)
        plan.data[which] = name if path is None else located(folder, _absolute(name))
    if start.target is not None:
        plan.data["target"] = start.target
    if start.classes is not None:
        plan.data["classes"] = list(start.classes)
    if start.id is not None:
        plan.data["id"] = start.id
    train = paths["train"]
    if train is None:
        return
    if train.is_dir() and train.suffix != ".zarr":
        look_at_pictures(train, plan)
        return
    if start.target is None:
        raise DataError(f"{start.train}: which of its columns is the target? Name it: --target")
    if train.suffix == ".npz":
        _look_at_arrays(train, plan)
    if all(path and path.is_file() and path.name.endswith(TABLES) for path in paths.values()):
        _look_at_tables(start, {w: p for w, p in paths.items() if p}, folder, plan)


def _path(start: Start, which: str) -> Path | None:
    """The file or folder of a split, the first of a pattern's; None for a callable."""
    name = getattr(start, which)
    if is_callable_name(name):
        return None
    path = _absolute(name)
    if _is_pattern(name):
        if not (found := sorted(glob(str(path), recursive=True))):
            raise DataError(f"--{which}: no file matches {path}")
        return Path(found[0])
    if not path.exists():
        near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"--{which}: no file {path}{did_you_mean(path.name, near)}")
    return path


def _absolute(name: str) -> Path:
    return Path(name).expanduser().resolve()


def _is_pattern(name: str) -> bool:
    return has_magic(name) and not _absolute(name).exists()


def located(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


# Tables ----------------------------------------------------------------------------------------


def _look_at_tables(start: Start, paths: dict[str, Path], folder: Path, plan: Plan) -> None:
    tables = {which: _table(path, getattr(start, which), plan) for which, path in paths.items()}
    for which, frame in tables.items():
        demand(getattr(start, which), frame.columns, str(start.target), "target", "--target")
        if start.id is not None:
            demand(getattr(start, which), frame.columns, start.id, "id", "--id")
    pictured = pictures_of(tables["train"], paths["train"], plan)
    if start.id is None:
        _identify(start, paths, tables, plan, copies=pictured is None)
    if pictured:
        look_at_some([paths["train"].parent / each for each in pictured], plan)
    else:
        _keep_texts(tables["train"], plan)


def _table(path: Path, name: str, plan: Plan) -> pd.DataFrame:
    content = content_of(path, name)
    try:
        if not path.name.endswith(TEXTS):
            read = pd.read_parquet if path.suffix == ".parquet" else pd.read_feather
            return read(io.BytesIO(content))
        head = next(_text(content), "")
        separator = max(",;\t|", key=head.count)
        if separator != ",":
            plan.data["csv"] = {"separator": separator}
            frame = pd.read_csv(io.BytesIO(content), sep=separator)
            if any(_has_decimal_commas(pd.Series(frame[column])) for column in frame):
                plan.data["csv"]["decimal"] = ","
        options = plan.data.get("csv", {})
        decimal = options.get("decimal", ".")
        return pd.read_csv(io.BytesIO(content), sep=separator, decimal=decimal)
    except Exception as error:  # pandas' and Arrow's, and of encodings
        kind = "".join(path.suffixes[-2 if path.suffix in (".gz", ".zst") else -1 :])
        raise DataError(f"{name}: not a readable {kind}: {str(error).strip()}") from error


def _text(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")


def _has_decimal_commas(column: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(column):
        return False
    return bool(column.astype(str).str.fullmatch(r"[+-]?\d+,\d+").any())


def _identify(
    start: Start,
    paths: dict[str, Path],
    tables: dict[str, pd.DataFrame],
    plan: Plan,
    *,
    copies: bool,
) -> None:
    """Take a column that is called like an id, or add one to copies of the tables.

    Rows of a table that is no .csv may be known by their position, and paths in a copy would lead
    nowhere. Raises `DataError` where several files would have to be copied.
    """
    for column in map(str, tables["train"].columns):
        if column.casefold() in IDS:
            plan.data["id"] = column
            plan.told.append(f"  ids: column {column!r}")
            return
    if any(not plan.data[which].endswith(TEXTS) for which in tables):
        plan.told.append("  ids: no column is called like one, so positions are; --id names one")
        return
    if copies and any(_is_pattern(getattr(start, which)) for which in paths):
        raise DataError(
            f"{start.train}: no column of these files is called like an id; add one, and name it: "
            "--id"
        )
    if not copies:
        plan.data["id"] = plan.data["images"]["path"]
        plan.told.append(f"  ids: the paths of the pictures, column {plan.data['id']!r}")
        return
    plan.data["id"] = "id"
    for which, path in paths.items():
        plan.copies[f"{which}.csv"] = _with_ids(path, getattr(start, which), which, plan)
        plan.data[which] = f"{which}.csv"
    plan.told.append(
        "  ids: no column is called like one, so the rows were copied to train.csv and test.csv "
        "in the folder, with a column 'id'; edit those"
    )


def _with_ids(path: Path, name: str, which: str, plan: Plan) -> str:
    """A table with a column of ids before the others, every cell as it stands in the file."""
    settings = DataSettings.model_validate(plan.data)
    separator = settings.csv.separator
    try:
        content = content_of(path, name)
        with long_cells(len(content)):
            header, *rows = filter(None, csv.reader(_text(content), delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{name}: not a readable .csv: {error}") from error
    check_names(name, header, settings)
    buffer, width = io.StringIO(), len(str(len(rows)))
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\n")
    writer.writerow(["id", *header])
    writer.writerows([f"{which}-{k:0{width}d}", *row] for k, row in enumerate(rows))
    return buffer.getvalue()


def _keep_texts(frame: pd.DataFrame, plan: Plan) -> None:
    """Columns of text travel along; beside columns of lists, such as embeddings, all others do."""
    roles = (plan.data["target"], plan.data.get("id"))
    wide = columns_of_lists(frame)
    texts = [
        str(column)
        for column in frame
        if column not in (*roles, *wide)
        and (wide or not pd.api.types.is_numeric_dtype(frame[column]))
    ]
    if wide:
        plan.data["features"] = {"columns": wide}
        size = len(frame[wide[0]].iloc[0])
        plan.told.append(f"  inputs: {', '.join(wide)}, lists of {size} numbers")
    _keep(texts, plan)


def _keep(columns: list[str], plan: Plan) -> None:
    if columns:
        plan.data["keep"] = columns
        plan.told.append(f"  no input, travels along: {', '.join(columns)}")


# Arrays ----------------------------------------------------------------------------------------


def _look_at_arrays(path: Path, plan: Plan) -> None:
    """Arrays of text travel along, and numbers of rows beside arrays of vectors."""
    try:
        with np.load(path, allow_pickle=False) as file:
            kinds = {name: (file[name].dtype.kind, file[name].ndim) for name in file.files}
    except Exception as error:
        raise DataError(f"{path.name}: not a readable .npz of plain arrays: {error}") from error
    demand(path.name, kinds, plan.data["target"], "target", "--target")
    roles = (plan.data["target"], plan.data.get("id", "id"))
    rest = {name: kind for name, kind in kinds.items() if name not in roles}
    vectors = any(ndim > 1 for _, ndim in rest.values())
    beside = [
        name for name, (kind, ndim) in rest.items() if kind in TEXT_KINDS or (vectors and ndim == 1)
    ]
    _keep(beside, plan)
