"""A stored study as plain files for others: one Zarr group, one netCDF file, one long table."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.errors import StoreError
from influence_dag.query.results import StudyResults
from influence_dag.stages import naming

PAIRS_AT_ONCE = 1_000_000  # lines of a table that are in memory


def export(results: StudyResults, target: Path, artifacts: Sequence[str] = ()) -> dict[str, Any]:
    """Write artifacts (by default all) to `target`, in the format that its suffix names.

    Nothing is there before it is complete. Raises `StoreError` for a target that exists, a format
    that is none of these, or one whose library is not installed.
    """
    write = FORMATS.get(target.suffix)
    if write is None:
        raise StoreError(
            f"{target} names no format; end it in {', '.join(FORMATS)}: one consolidated Zarr "
            "group, one netCDF file, one long table of influences"
        )
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists; name another file, or remove it")
    if not target.absolute().parent.is_dir():
        raise StoreError(f"{target.absolute().parent} is no folder; make it first")
    with _complete(target) as unfinished:
        written = write(results, unfinished, list(artifacts))
    return {"file": target, "study": results.store.name, "artifacts": written}


@contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """Where to write: beside the target, moved there when all is written, else removed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    try:
        yield folder / target.name
        (folder / target.name).rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tree(results: StudyResults, artifacts: list[str]) -> xr.DataTree:
    known = results.tree()
    if not artifacts:
        return known
    groups = {f"/{name}": results.open(name) for name in artifacts}  # names the nearest right one
    return xr.DataTree.from_dict({"/": xr.Dataset()} | groups, name=known.name)


def _zarr(results: StudyResults, target: Path, artifacts: list[str]) -> list[str]:
    """Zarr 2, whose metadata every reader finds in one file."""
    tree = _tree(results, artifacts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(onsolidated|Unstable).*")
        tree.to_zarr(target, zarr_format=2, consolidated=True)
    return artifacts or results.artifacts


def _netcdf(results: StudyResults, target: Path, artifacts: list[str]) -> list[str]:
    engines = {"netCDF4": "netcdf4", "h5netcdf": "h5netcdf"}
    installed = [engine for module, engine in engines.items() if find_spec(module)]
    if not installed:
        raise StoreError(
            f"{target.name} needs a library that writes netCDF groups, and neither "
            f"{' nor '.join(engines)} is installed; pip install h5netcdf, or export to .zarr"
        )
    _tree(results, artifacts).to_netcdf(target, engine=installed[0])  # type: ignore[arg-type]
    return artifacts or results.artifacts


def _parquet(results: StudyResults, target: Path, artifacts: list[str]) -> list[str]:
    """A line for each pair and λ: method, damping, ids, labels, influence."""
    if not find_spec("pyarrow"):
        raise StoreError(
            f"{target.name} needs pyarrow, which is not installed; pip install "
            "'influence-dag[parquet]', or export to .zarr"
        )
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    names = artifacts or [naming.influences(method) for method in results.methods]
    if others := [name for name in names if not name.endswith(naming.influences(""))]:
        raise StoreError(
            f"{others[0]} is no table of pairs; parquet takes "
            f"{', '.join(map(naming.influences, results.methods))}, and .zarr takes anything"
        )
    writer = None
    try:
        for part in (part for name in names for part in _parts(results, name)):
            table = pa.Table.from_pydict(part)
            writer = writer or ParquetWriter(target, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    return names


def _parts(results: StudyResults, artifact: str) -> Iterator[dict[str, Any]]:
    """The columns of some test rows at a time."""
    method = artifact.removesuffix(naming.influences(""))
    influences = results.open(artifact)["influences"]
    if "damping" not in influences.dims:
        influences = influences.expand_dims(damping=[_damping(results, method)])
    tests, trains = influences.sizes["test"], influences.sizes["train"]
    size = max(1, PAIRS_AT_ONCE // trains)
    for k in range(influences.sizes["damping"]):
        for start in range(0, tests, size):
            yield _columns(method, influences[k, start : start + size].load())


def _damping(results: StudyResults, method: str) -> float:
    """The λ of all parameters; NaN where blocks have their own, or none has any."""
    damping = results.store.version(naming.influences(method)).attrs["damping"]
    return float(damping) if isinstance(damping, int | float) else float("nan")


def _columns(method: str, block: xr.DataArray) -> dict[str, Any]:
    tests, trains = block.shape
    of = {
        "test": lambda values: np.repeat(values, trains),
        "train": lambda values: np.tile(values, tests),
    }
    columns: dict[str, Any] = {
        "method": np.repeat(method, block.size),
        "damping": np.repeat(float(block["damping"]), block.size),
    }
    for name in ("test", "train", "test_label", "train_label"):
        if name in block.coords:
            columns[name] = of[name.partition("_")[0]](block[name].values)
    return columns | {"influence": block.values.ravel()}


FORMATS: dict[str, Callable[[StudyResults, Path, list[str]], list[str]]] = {
    ".zarr": _zarr,
    ".nc": _netcdf,
    ".parquet": _parquet,
}
