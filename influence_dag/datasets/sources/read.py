"""Which reader a split takes, and which files it is made of."""

import os
from glob import glob, has_magic
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

from influence_dag.datasets.sources.base import Source
from influence_dag.datasets.sources.joining import joined
from influence_dag.errors import DataError
from influence_dag.study.base import Split, is_callable_name
from influence_dag.study.data import DataSettings
from influence_dag.study.places import RULE
from influence_dag.texts import did_you_mean, listed

READERS = {
    ".csv": "csv_files:read_csv",
    ".csv.gz": "csv_files:read_csv",
    ".csv.zst": "csv_files:read_csv",
    ".parquet": "tables:read_parquet",
    ".feather": "tables:read_feather",
    ".arrow": "tables:read_feather",
    ".npz": "arrays:read_npz",
    ".zarr": "arrays:read_zarr",
}
"""By ending, the module of this folder and its function: imported when there is such a file."""

CALLABLE, FOLDER = "module:callable", "folders of pictures"
READ_BY = {
    "id": (*READERS, CALLABLE),
    "target": (*READERS, CALLABLE),
    "keep": (*READERS, CALLABLE),
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "images": (*READERS, FOLDER),
    "images.path": READERS,
    "images.root": READERS,
}
"""Settings that not every kind of source reads: the kinds that do."""

_INSTEAD = {"id": ", where ids are the paths", "target": ", where labels are folders' names"}


def _reader(name: str) -> Any:
    return resolve_name(f"influence_dag.datasets.sources.{name}")


def read_source(data: DataSettings, which: Split, root: Path) -> Source:
    """Read the split `which` of the settings; `DataError` says what a file lacks."""
    names = data.names(which)
    if is_callable_name(names[0]):
        return _reader("callables:read_callable")(names[0], data, which, root)
    sources = [
        _read(path, name, data, which, root) for name, path in files(data, which, root).items()
    ]
    if [os.path.expanduser(name) for name in names] == [sources[0].name]:
        return sources[0]
    return joined(data.described(which), sources)


def check_read(data: DataSettings, root: Path) -> None:
    """A `DataError` for a setting that is ignored, as nothing that is named reads it."""
    given = data.model_dump(exclude_defaults=True)
    settings = {*given, *(f"images.{name}" for name in given.get("images") or ())}
    kinds = {kind for which in get_args(Split) for kind in _kinds(data, which, root)}
    if not kinds <= {*READERS, CALLABLE, *([FOLDER] if data.images else [])}:
        return  # it is refused when it is read
    for setting, readers in READ_BY.items():
        if setting in settings and kinds.isdisjoint(readers):
            raise DataError(
                f"data.{setting} would be ignored: it is for {listed(readers, 10)}, and the rows "
                f"come from {listed(sorted(kinds))}{_INSTEAD.get(setting, '')}; leave it out"
            )


def _kinds(data: DataSettings, which: Split, root: Path) -> set[str]:
    if is_callable_name(data.names(which)[0]):
        return {CALLABLE}
    paths = files(data, which, root).values()
    endings = {path: _ending(path) for path in paths}
    return {
        FOLDER if path.is_dir() and ending not in READERS else ending
        for path, ending in endings.items()
    }


def files(data: DataSettings, which: Split, root: Path) -> dict[str, Path]:
    """Name → file (or folder) of a split, sorted; names are relative to `root` as the settings are.

    Raises `DataError` for a name or a pattern that nothing has.
    """
    paths: dict[str, Path] = {}
    for written in data.names(which):
        name = os.path.expanduser(written)
        matching = [name]
        if has_magic(name) and not (root / name).exists():
            matching = glob(name, root_dir=root, recursive=True)
            if not matching:
                raise DataError(f"data.{which}: no file in {root} matches {name!r} ({RULE})")
        paths |= {each: _existing(each, which, root) for each in matching}
    return dict(sorted(paths.items()))


def pictures(data: DataSettings, which: Split, root: Path) -> dict[str, Path]:
    """Name → file of the pictures that the tables of a split name; none where they name none."""
    found: dict[str, Path] = {}
    tables = files(data, which, root).items() if data.images else ()
    for table, path in tables:
        if _ending(path) in READERS:
            read, named = _reader(READERS[_ending(path)]), _reader("images:named_pictures")
            _, names, there = named(read, path, table, data, root)
            found |= {f"{table}: {name}": file for name, file in zip(names, there, strict=True)}
    return found


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix in (".gz", ".zst") else path.suffix


def _read(path: Path, name: str, data: DataSettings, which: Split, root: Path) -> Source:
    ending = _ending(path)
    if path.is_dir() and ending != ".zarr":
        if ending in READERS:
            raise DataError(f"data.{which}: {name} is a folder; a file of that name is wanted")
        if data.images is None:
            raise DataError(
                f"data.{which}: {name} is a folder; of pictures, with a folder a class? Then write "
                "data.images: {size: [32, 32], channels: 3}"
            )
        return _reader("images:read_folder")(path, name, data)
    if ending not in READERS:
        raise DataError(
            f"data.{which}: {name} ends in {repr(ending) if ending else 'nothing'}; "
            f"known are {', '.join(READERS)} and 'module:callable'"
        )
    read = _reader(READERS[ending])
    if data.images is None:
        return read(path, name, data)
    return _reader("images:read_pictures")(read, path, name, data, root)


def _existing(name: str, which: Split, root: Path) -> Path:
    path = root / name
    try:
        there = path.exists()
    except OSError as error:
        raise DataError(f"data.{which}: {name:.200} is no file: {error.strerror}") from error
    if not there and path.is_symlink():
        raise DataError(
            f"data.{which}: {path} is a link to {os.readlink(path)}, which leads to no file; "
            "correct the link, or name the file itself"
        )
    if not there:
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        told = "" if os.path.isabs(name) else f" ({RULE}, {root})"
        raise DataError(f"data.{which}: no file {path}{did_you_mean(path.name, neighbours)}{told}")
    if not (path.is_file() or path.is_dir()):  # reading a pipe would wait for ever
        raise DataError(
            f"data.{which}: {path} is neither a file nor a folder; save the rows to a file"
        )
    return path
