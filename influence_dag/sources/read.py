"""Which reader a split takes."""

from pathlib import Path

from influence_dag.errors import DataError
from influence_dag.sources.arrays import read_npz, read_zarr
from influence_dag.sources.base import Source, did_you_mean
from influence_dag.sources.callables import read_callable
from influence_dag.sources.tables import read_csv, read_parquet
from influence_dag.study import DataSettings

READERS = {".csv": read_csv, ".parquet": read_parquet, ".npz": read_npz, ".zarr": read_zarr}


def is_callable_name(name: str) -> bool:
    """True for `module:callable`, False for the path of a file."""
    return ":" in name and "/" not in name


def read_source(data: DataSettings, which: str, root: Path) -> Source:
    """Read the split `which` of the settings; `DataError` says what a file lacks."""
    name = getattr(data, which)
    if is_callable_name(name):
        return read_callable(name, data, which, root)
    path = existing_path(name, which, root)
    if path.suffix not in READERS:
        raise DataError(
            f"data.{which}: {name} ends in {path.suffix or 'nothing'!r}; "
            f"known are {', '.join(READERS)} and 'module:callable'"
        )
    return READERS[path.suffix](path, name, data)


def existing_path(name: str, which: str, root: Path) -> Path:
    """The file or folder of that name, relative to `root`."""
    path = root / name
    if not path.exists():
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"data.{which}: no file {path}{did_you_mean(path.name, neighbours)}")
    return path
