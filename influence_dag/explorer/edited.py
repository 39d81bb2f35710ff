"""A copy of the training file with the marked rows dropped and relabelled."""

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from influence_dag.addresses import folder_of
from influence_dag.datasets.sources import files
from influence_dag.errors import InfluenceDagError, StoreError
from influence_dag.explorer.opened import Opened
from influence_dag.stages import naming
from influence_dag.study.base import is_callable_name
from influence_dag.study.data import DataSettings
from influence_dag.study.places import project_around

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
    except (InfluenceDagError, OSError, ValueError, KeyError, ImportError) as error:
        return {}, [f"No copy of the training data was made: {error}"]
    acted = [name for name, mark in marks.items() if mark["action"] != "keep"]
    missing = [name for name in acted if not any(name in rows for _, rows in copied.values())]
    said = _missing(missing) if missing else []
    return {name: content for name, (content, _) in copied.items()}, said


def _missing(names: list[str]) -> list[str]:
    shown = f"{names[0]!r:.80}" + (", …" if len(names) > 1 else "")
    return [
        f"{len(names)} marked rows ({shown}) are not in the file as it is now; the copy is without "
        "their changes."
    ]


def _source(opened: Opened, method: str) -> tuple[DataSettings, dict[str, Path]]:
    """How the training rows are read, and their files: those that lie within the project."""
    told = json.loads(opened.version(naming.factors(method)).attrs["study_settings"])
    data, root = DataSettings.model_validate(told["settings"]["data"]), project_of(opened)
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
    import pandas as pd

    buffer = io.BytesIO()
    if path.name.endswith(PARQUET):
        frame, marked = _applied(pd.read_parquet(path), data, marks)
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue(), marked
    form: dict[str, Any] = {"sep": data.csv.separator, "encoding": data.csv.encoding}
    read = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, **form)
    frame, marked = _applied(read, data, _written(marks, data.csv.decimal))
    if form["encoding"].lower() == "utf-8-sig" and not path.read_bytes().startswith(BOM_UTF8):
        form["encoding"] = "utf-8"  # which reads both, and writes a mark that was not there
    frame.to_csv(buffer, index=False, lineterminator="\n", **form)
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(label: str, dtype: Any) -> Any:
    """A label as a cell of its column."""
    kind = getattr(dtype, "kind", "O")
    if kind == "b":
        return bool(float(label)) if label.lower() not in ("true", "false") else label[0] in "tT"
    return int(label) if kind in "iu" else float(label) if kind == "f" else label


def _applied(frame: Any, data: DataSettings, marks: Marked) -> tuple[Any, set[str]]:
    """The table without dropped rows and with new labels; every other cell as it was."""
    ids = frame[data.id].astype(str).str.strip()
    marked = set(ids) & set(marks)
    target = frame[data.target].copy()
    for name in sorted(marked):
        if marks[name]["action"] == "relabel":
            target[ids == name] = _cell(marks[name]["label"], target.dtype)
    dropped = {name for name in marked if marks[name]["action"] == "drop"}
    return frame.assign(**{data.target: target})[~ids.isin(dropped)], marked
