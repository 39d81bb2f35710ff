"""The one place where an address becomes a store."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from influence_dag.addresses import scheme_of
from influence_dag.errors import StoreError
from influence_dag.store.protocol import Store

_ICECHUNK = "influence_dag.store.icechunk.versions:IcechunkStore"
BACKENDS: dict[str, str] = {
    "": "influence_dag.store.posix.versions:ArtifactStore",
    "memory": "influence_dag.store.memory:MemoryStore",
    "s3": _ICECHUNK,
    "icechunk+file": _ICECHUNK,
}
"""What makes a store of an address and its options, by the address's scheme (none: a path).

Named, and imported when there is such an address.
"""


def open_store(address: str | Path, **options: Any) -> Store:
    """The store at an address: a folder's path, `memory://name` in this process, or `s3://…`.

    `options` are `keep_versions`, `lock_timeout`, `report`, and what the backend knows besides
    (`locks` of a folder). Nothing is created before something is written.
    """
    check_address(str(address))
    return resolve_name(BACKENDS[scheme_of(str(address))])(address, **options)


def check_address(address: str) -> None:
    """A `StoreError` for an address of a backend that is not there, or not installed."""
    scheme = scheme_of(address)
    if BACKENDS.get(scheme) == _ICECHUNK:
        from influence_dag.store.icechunk.places import check_place

        check_place(address)
    if scheme not in BACKENDS:
        known = ", ".join(f"{name}://…" for name in BACKENDS if name)
        raise StoreError(
            f"{address} is in no kind of store that is known ({scheme}); give the path of a "
            f"folder, or one of {known}"
        )
