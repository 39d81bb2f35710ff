"""A copy of the training file with the marked rows dropped and relabelled."""

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from influence_dag.addresses import folder_of
from influence_dag.datasets.sources import files
from influence_dag.datasets.sources.base import demand
from influence_dag.errors import InfluenceDagError, StoreError
from influence_dag.explorer.opened import Opened
from influence_dag.stages import naming
from influence_dag.study.base import is_callable_name
from influence_dag.study.data import DataSettings
from influence_dag.study.places import project_around
from influence_dag.study.stored import as_stored

Marked = Mapping[str, Mapping[str, Any]]
TEXTS, PARQUET = (".csv", ".csv.gz"), (".parquet",)


def project_of(opened: Opened) -> Path | None:
    """The project that was named, or the one in whose folder the store lies."""
    folder = folder_of(opened.store.address)
    return opened.results.project or (project_around(folder) if folder else None)


def copies(opened: Opened, method: str, marks: Marked) -> tuple[dict[str, bytes], list[str]]:
    """Edited copies of the training files by name, and what there is to say of them."""
    try:
        data, named = _source(opened, method)
        copied = dict(_edited(data, named, marks))
    except (InfluenceDagError, OSError, ValueError, ImportError) as error:
        return {}, [f"No copy of the training data was made: {error}"]
    acted = [name for name, mark in marks.items() if mark["action"] != "keep"]
    missing = [name for name in acted if not any(name in rows for _, rows in copied.values())]
    shown = ", ".join(f"{name!r:.80}" for name in missing[:1]) + ", …" * (len(missing) > 1)
    said = (
        f"{len(missing)} marked rows ({shown}) are not in the file as it is now; the copy is "
        "without their changes."
    )
    return {name: content for name, (content, _) in copied.items()}, [said] if missing else []


def _source(opened: Opened, method: str) -> tuple[DataSettings, dict[str, Path]]:
    """How the training rows are read, and their files: those that lie within the project."""
    told = json.loads(opened.version(naming.factors(method)).attrs["study_settings"])
    data = as_stored(DataSettings, told["settings"]["data"], opened.store.address)
    root = project_of(opened)
    if root is None:
        raise StoreError(
            "the store lies in no project (no pyproject.toml in a folder above it) and none is "
            "named; apply marks.csv to the data"
        )
    if any(map(is_callable_name, data.names("train"))):
        raise StoreError(
            f"the training rows come from code ({data.described('train')}), not from a file; "
            "apply marks.csv where the code reads them"
        )
    named = files(data, "train", root)
    for name, path in named.items():
        if not path.resolve().is_relative_to(root.resolve()):
            raise StoreError(f"{name} lies outside of the project {root}; apply marks.csv to it")
        if not path.name.endswith(TEXTS + PARQUET):
            raise StoreError(
                f"{name} is neither a .csv (or .csv.gz) nor a .parquet file; apply marks.csv to it"
            )
    if data.id is None:
        raise StoreError("its rows have no column of ids (data.id); apply marks.csv to the data")
    return data, named


def _edited(
    data: DataSettings, named: Mapping[str, Path], marks: Marked
) -> Iterator[tuple[str, tuple[bytes, set[str]]]]:
    """Name of the copy → its content, and the marked rows that were found in it."""
    taken: set[str] = set()
    for path in named.values():
        name = path.name.removesuffix(".gz")
        if name in taken:
            raise StoreError(f"two training files are called {name}; apply marks.csv to the data")
        taken.add(name)
        yield name, _copy(path, data, marks)


def _copy(path: Path, data: DataSettings, marks: Marked) -> tuple[bytes, set[str]]:
    if path.name.endswith(PARQUET):
        return _copy_of_parquet(path, data, marks)
    import pandas as pd

    buffer = io.BytesIO()
    form: dict[str, Any] = {"sep": data.csv.separator, "encoding": data.csv.encoding}
    as_text: dict[str, Any] = {"dtype": str, "keep_default_na": False, "index_col": False, **form}
    read = pd.read_csv(path, **as_text)
    header = pd.read_csv(path, header=None, nrows=1, **as_text).iloc[0]  # some may have no name
    _demand(path, read.columns, data)
    marks = _counted(_written(marks, data.csv.decimal), data, read[data.target])
    frame, marked = _applied(read, data, marks)
    if form["encoding"].lower() == "utf-8-sig" and not path.read_bytes().startswith(BOM_UTF8):
        form["encoding"] = "utf-8"  # which reads both, and writes a mark that was not there
    frame.to_csv(buffer, index=False, header=header.to_list(), lineterminator="\n", **form)
    return buffer.getvalue(), marked


def _written(marks: Marked, decimal: str) -> Marked:
    """Marks with labels as the file writes numbers, where its decimal mark is another."""
    if decimal == ".":
        return marks
    return {
        name: {**mark, "label": mark["label"].replace(".", decimal)}
        if "label" in mark and _is_number(mark["label"])
        else mark
        for name, mark in marks.items()
    }


def _counted(marks: Marked, data: DataSettings, cells: Iterable[object]) -> Marked:
    """Marks with labels as a file has them whose numbers count the classes of the settings."""
    known = {str(cell).strip().lower() for cell in cells}
    if data.classes is None or known & {*map(str.lower, data.classes)}:
        return marks
    truth = known <= {"true", "false"}
    if not truth and not all(map(str.isdecimal, known)):
        return marks
    shown = [str(bool(k)) if truth else str(k) for k in range(len(data.classes))]
    numbers = dict(zip(data.classes, shown, strict=True))
    return {
        name: {**mark, "label": numbers.get(mark["label"], mark["label"])}
        if "label" in mark
        else mark
        for name, mark in marks.items()
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _applied(frame: Any, data: DataSettings, marks: Marked) -> tuple[Any, set[str]]:
    """The table of texts without dropped rows and with new labels; every other cell as it was."""
    ids = frame[data.id].str.strip()
    marked = set(ids) & set(marks)
    target = frame[data.target].copy()
    for name in sorted(marked):
        if marks[name]["action"] == "relabel":
            target[ids == name] = marks[name]["label"]
    dropped = {name for name in marked if marks[name]["action"] == "drop"}
    return frame.assign(**{data.target: target})[~ids.isin(dropped)], marked


def _copy_of_parquet(path: Path, data: DataSettings, marks: Marked) -> tuple[bytes, set[str]]:
    """The same of a table in Arrow's own types, which are kept, as is an index of pandas."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(path)
    _demand(path, table.column_names, data)
    ids = list(map(_as_text, table[data.id].to_pylist()))
    place, target = table.schema.get_field_index(data.target), table[data.target]
    marks = _counted(marks, data, target.to_pylist())
    new = [k for k, name in enumerate(ids) if marks.get(name, {}).get("action") == "relabel"]
    if new:
        cells = target.to_pylist()
        for k in new:
            cells[k] = _cell(marks[ids[k]]["label"], target.type)
        table = table.set_column(place, table.schema.field(place), pa.array(cells, target.type))
    kept = [marks.get(name, {}).get("action") != "drop" for name in ids]
    buffer = io.BytesIO()
    parquet.write_table(table.filter(pa.array(kept)), buffer)
    return buffer.getvalue(), set(ids) & set(marks)


def _demand(path: Path, columns: Iterable[str], data: DataSettings) -> None:
    """Raise `DataError` for a file that has lost its ids or its target since it was read."""
    demand(path.name, columns, str(data.id), "id", "data.id")
    demand(path.name, columns, data.target, "target", "data.target")


def _as_text(identity: Any) -> str:
    """An id as rows are known by it."""
    return (identity.decode() if isinstance(identity, bytes) else str(identity)).strip()


def _number(label: str) -> int | float:
    """A whole number with all its digits, where it is written as one."""
    with suppress(ValueError):
        return int(label)
    return float(label)


def _cell(label: str, kind: Any) -> Any:
    """A label as a value of its column."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        number = {"true": 1, "false": 0}.get(label.lower())
        number = _number(label) if number is None else number
        if isinstance(number, float) and not number.is_integer():
            raise StoreError(f"the label {label} is none that a column of {kind} can hold")
        return bool(number) if pa.types.is_boolean(kind) else int(number)
    return pa.scalar(label).cast(kind).as_py()
