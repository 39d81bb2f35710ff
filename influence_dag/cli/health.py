"""`influence-dag doctor`: whether this installation and a store are sound."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from influence_dag.cli.endings import REFUSED
from influence_dag.cli.printing import as_json, emit, heading, table
from influence_dag.errors import StoreError

if TYPE_CHECKING:
    from influence_dag.store import Store

NEEDED = ("influence-dag", "torch", "dagster", "xarray", "zarr", "numpy", "dask")
OPTIONAL = ("dagster-webserver", "pyarrow", "distributed", "h5netcdf", "netCDF4")
NO_VERSION = "not installed"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `trouble` says what to do about it."""

    what: str
    seen: Any
    trouble: str = ""


Groups = dict[str, list[Finding]]


def _print(groups: Groups, troubles: list[str]) -> None:
    for name, group in groups.items():
        heading(name)
        table(["", ""], [[each.what, each.seen] for each in group])
        click.echo()
    for trouble in troubles:
        click.secho(f"! {trouble}", fg="red")
    click.echo(f"{len(troubles)} troubles" if troubles else "all is well")


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    for name in (*NEEDED, *OPTIONAL):
        seen = _version(name)
        missing = seen == NO_VERSION and name in NEEDED
        yield Finding(name, seen, f"{name} is not installed: pip install {name}" * missing)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NO_VERSION


def _machine() -> Iterator[Finding]:
    """What `compute.device: auto` would take."""
    yield Finding("system", f"{platform.system()} {platform.machine()}")
    yield Finding(
        "cores", len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    )
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "none", f"torch cannot be imported: {error}")
        return
    yield Finding("threads of torch", torch.get_num_threads())
    if not torch.cuda.is_available():
        yield Finding("device", "cpu")
        return
    free, total = torch.cuda.mem_get_info()
    yield Finding("device", f"cuda: {torch.cuda.get_device_name()}")
    yield Finding("memory of the device", f"{free / 2**30:.3g} of {total / 2**30:.3g} GiB free")


def _history(store: str | None) -> Iterator[Finding]:
    """Where runs are recorded."""
    from influence_dag.study.places import home_of, project_around

    given = os.environ.get("DAGSTER_HOME")
    no_folder = bool(given) and not Path(str(given)).is_dir()
    trouble = f"DAGSTER_HOME is {given}, which is no folder: make it, or unset it" * no_folder
    yield Finding("DAGSTER_HOME", given or "not set", trouble)
    place = Path(store).absolute() if store and "://" not in store else Path.cwd()
    home = home_of(project_around(place) or place)
    yield Finding("runs are recorded in", str(home) if home else "no place: `make ui` sets it up")


def _store(address: str, *, checksums: bool) -> Iterator[Finding]:
    """Each artifact by the store's own check, and what interrupted runs have left."""
    from influence_dag.query.results import open_study

    store = open_study(address).store
    yield Finding("address", store.address)
    yield from (_artifact(store, name, checksums=checksums) for name in store.names())
    for name, blocks in store.unfinished().items():
        yield Finding(f"{name}, unfinished", f"{blocks} blocks, kept for the next run")
    if (free := store.free_bytes()) is not None:
        yield Finding("free", f"{free / 2**30:.4g} GiB")


def _artifact(store: "Store", name: str, *, checksums: bool) -> Finding:
    try:
        current = store.version(name)
        damage = current.verify(checksums=checksums)
    except StoreError as error:
        return Finding(name, "damaged", str(error))
    if not damage:
        return Finding(name, f"version {current.number}, sound")
    seen = f"version {current.number}, {len(damage)} files damaged or missing"
    first = damage[0].file
    return Finding(
        name, seen, f"{name}: {first} is damaged or missing; materialise the study again"
    )


@click.command()
@click.argument("store", required=False)
@click.option(
    "--checksums", is_flag=True, help="Read every file of STORE, not only sizes and times."
)
@as_json
def doctor(store: str | None, checksums: bool, as_json: bool) -> None:
    """Versions, device, where runs are recorded, and whether all files of STORE are sound.

    Exit code 1 where something is wrong.
    """
    if checksums and store is None:
        raise click.UsageError("--checksums reads the files of a STORE; name it")
    groups = {"versions": [*_versions()], "machine": [*_machine()], "dagster": [*_history(store)]}
    if store is not None:
        groups["store"] = [*_store(store, checksums=checksums)]
    troubles = [each.trouble for group in groups.values() for each in group if each.trouble]
    seen = {name: {each.what: each.seen for each in group} for name, group in groups.items()}
    emit({**seen, "troubles": troubles}, lambda: _print(groups, troubles), as_json=as_json)
    if troubles:
        raise click.exceptions.Exit(REFUSED)
