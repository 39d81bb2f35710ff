"""A stored study as plain files for others: one Zarr group, one netCDF file, one long table.

A Zarr group may be put in an object store; the others are files of this machine.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from influence_dag.addresses import scheme_of
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.stages.blocks import pieces

if TYPE_CHECKING:
    import pyarrow as pa
    from zarr.abc.store import Store as ZarrStore

    from influence_dag.query.results import StudyResults

PAIRS_AT_ONCE = 1_000_000  # lines of a table that are in memory


def export(
    results: "StudyResults",
    target: str | Path,
    artifacts: Sequence[str] = (),
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write artifacts (by default all) to `target`, in the format that its suffix names.

    `target` is a path, or for `.zarr` the address of an object store that fsspec knows
    (`s3://bucket/out.zarr`; `storage_options` are its file system's). Nothing is in memory beyond a
    block a core. A file or folder is there when it is complete and not before; in an object store
    the metadata by which readers find arrays come last. `file:///path` is that path. Raises
    `StoreError` for a target that exists or cannot be written, a format that is none of these, or a
    library that is not installed.
    """
    names = [artifacts] if isinstance(artifacts, str) else list(artifacts)
    if scheme_of(target) == "file":
        target = str(target).partition("://")[2]
    write = FORMATS.get(Path(str(target)).suffix)
    if write is None:
        raise StoreError(
            f"{target} names no format; end it in {', '.join(FORMATS)}: one consolidated Zarr "
            "group, one netCDF file, one long table of influences"
        )
    if scheme_of(target):
        written = _to_object_store(results, str(target), names, dict(storage_options or {}))
    elif storage_options:
        raise StoreError(f"{target} is a path; storage_options are for s3://… and the like")
    else:
        written = _to_file(results, Path(target), names, write)
    return {"file": target, "study": results.store.name, "artifacts": written}


def _to_file(
    results: "StudyResults", target: Path, artifacts: list[str], write: "_Format"
) -> list[str]:
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists; name another file, or remove it")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder; make it first")
    try:
        with _complete(target) as unfinished:
            return write(results, unfinished, artifacts)
    except OSError as error:
        raise StoreError(
            f"writing {target} failed: {error}; name a folder that can be written and has room"
        ) from error


def _to_object_store(
    results: "StudyResults", target: str, artifacts: list[str], options: dict[str, Any]
) -> list[str]:
    """A Zarr group below an address; what was written is removed again where it fails."""
    if not target.endswith(".zarr"):
        raise StoreError(
            f"{target} is in an object store, where only a .zarr group is written; export "
            f"{Path(target).suffix} to a file and copy it there"
        )
    from fsspec import available_protocols, url_to_fs
    from zarr.storage import FsspecStore

    if scheme_of(target) not in available_protocols():
        raise _unserved(target, f"nobody knows {scheme_of(target)}://")
    with _reached(target):
        files, folder = url_to_fs(target, **options)
        held = files.find(folder)
    if held:
        raise StoreError(f"{target} exists ({held[0]}); name another address, or remove it")
    with _reached(target):
        try:
            store = FsspecStore.from_url(target, storage_options=options)
            return _zarr(results, store, artifacts)
        except BaseException:
            with suppress(Exception):  # of who may write and not remove
                files.invalidate_cache()
                files.rm(folder, recursive=True)
            raise


def _unserved(target: str, why: str) -> StoreError:
    return StoreError(
        f"{target}: {why}; install what serves it as fsspec does (for s3:// pip install "
        "'influence-dag[s3]'), or export to a folder"
    )


@contextmanager
def _reached(target: str) -> Iterator[None]:
    """Inside, what the object store and its library say is a `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except ImportError as error:
        raise _unserved(target, str(error)) from error
    except Exception as error:  # of any library's, with no class in common
        raise StoreError(
            f"writing {target} failed ({type(error).__name__}: {error!s:.300}); name a bucket that "
            "exists and may be written, with its credentials and endpoint in the environment "
            "(AWS_…) or in storage_options"
        ) from error


@contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """Where to write: beside the target, moved there when all is written, else removed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    try:
        yield folder / target.name
        (folder / target.name).rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _zarr(results: "StudyResults", target: "Path | ZarrStore", artifacts: list[str]) -> list[str]:
    """Zarr 2, whose metadata every reader finds in one file."""
    tree = results.tree(artifacts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(onsolidated|Unstable).*")
        tree.to_zarr(target, zarr_format=2, consolidated=True)
    return artifacts or results.artifacts


def _netcdf(results: "StudyResults", target: Path, artifacts: list[str]) -> list[str]:
    engines = {"netCDF4": ["netCDF4"], "h5netcdf": ["h5netcdf", "h5py"]}
    installed = [name.lower() for name, needs in engines.items() if all(map(find_spec, needs))]
    if not installed:
        raise StoreError(
            f"{target.name} needs a library that writes netCDF groups, and neither "
            f"{' nor '.join(engines)} is installed; pip install "
            "'influence-dag[netcdf]', or export to .zarr"
        )
    tree = results.tree(artifacts)
    _check_room(target, sum(map(_bytes_of, tree.subtree)))
    tree.to_netcdf(target, engine=installed[0])  # type: ignore[arg-type]
    return artifacts or results.artifacts


def _bytes_of(node: xr.DataTree) -> int:
    """About what HDF5 takes: numbers as they are, a text behind a pointer, and words of each."""
    arrays = node.variables.values()
    texts = sum(48 * array.size for array in arrays if array.dtype.kind in "OTU")
    return sum(array.nbytes for array in arrays) + texts + 4096 * len(arrays)


def _check_room(path: Path, size: int) -> None:
    """Raise `OSError` where a file would find no room: HDF5 ends the process when a write fails."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


def _parquet(results: "StudyResults", target: Path, artifacts: list[str]) -> list[str]:
    """A line for each pair and λ: method, damping, ids, labels, influence."""
    if not find_spec("pyarrow"):
        raise StoreError(
            f"{target.name} needs pyarrow, which is not installed; pip install "
            "'influence-dag[parquet]', or export to .zarr"
        )
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    names = artifacts or [naming.influences(method) for method in results.methods]
    if not names:
        raise StoreError(f"{results.store.address} has no influences yet; materialise the study")
    if others := [name for name in names if not name.endswith(naming.influences(""))]:
        raise StoreError(
            f"{others[0]} is no table of pairs; parquet takes "
            f"{', '.join(map(naming.influences, results.methods))}, and .zarr takes anything"
        )
    arrays = {name.removesuffix(naming.influences("")): _swept(results, name) for name in names}
    firsts = (_columns(method, array[0, :1, :1]) for method, array in arrays.items())
    schema = _common([pa.Table.from_pydict(columns).schema for columns in firsts])
    with ParquetWriter(target, schema, compression="zstd") as writer:
        for part in (part for each in arrays.items() for part in _parts(*each)):
            writer.write_table(pa.Table.from_pydict(part).select(schema.names).cast(schema))
    return names


def _common(schemas: "list[pa.Schema]") -> "pa.Schema":
    """The columns that all have, in types that hold those of each: ids may be text in one alone."""
    import pyarrow as pa

    names = [name for name in schemas[0].names if all(name in each.names for each in schemas)]
    types = {name: {each.field(name).type for each in schemas} for name in names}
    for found in types.values():
        if len(found) > 1:
            numbers = all(map(pa.types.is_floating, found))
            found.clear()
            found.add(pa.float64() if numbers else pa.string())
    return pa.schema([(name, *found) for name, found in types.items()])


def _swept(results: "StudyResults", artifact: str) -> xr.DataArray:
    """Influences of a method, `(damping, test, train)`; λ is NaN where blocks have their own."""
    influences = results.open(artifact)["influences"]
    if "damping" in influences.dims:
        return influences
    damping = results.store.version(artifact).attrs["damping"]
    is_one = isinstance(damping, int | float)
    return influences.expand_dims(damping=[float(damping) if is_one else float("nan")])


def _parts(method: str, influences: xr.DataArray) -> Iterator[dict[str, Any]]:
    """The columns of some test rows at a time."""
    dampings, tests, trains = influences.shape
    for k in range(dampings):
        for some in pieces(0, tests, PAIRS_AT_ONCE // trains):
            yield _columns(method, influences[k, some].load())


def _columns(method: str, block: xr.DataArray) -> dict[str, Any]:
    labels = [name for name in ("test_label", "train_label") if name in block.coords]
    names = ["method", "damping", "test", "train", *labels, "influence"]
    told = block.drop_vars({*block.coords} - {*names})
    table = told.to_dataframe("influence").reset_index().assign(method=method)
    return {name: table[name].to_numpy() for name in names}


_Format = Callable[["StudyResults", Path, list[str]], list[str]]
FORMATS: dict[str, _Format] = {".zarr": _zarr, ".nc": _netcdf, ".parquet": _parquet}
