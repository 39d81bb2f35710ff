"""The one place where an address becomes a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.addresses import scheme_of
from influence_dag.errors import StoreError
from influence_dag.store.memory import MemoryStore
from influence_dag.store.posix.versions import ArtifactStore
from influence_dag.store.protocol import Store

if TYPE_CHECKING:
    from influence_dag.store.icechunk.versions import IcechunkStore


def _icechunk(address: str, **options: Any) -> "IcechunkStore":
    """Imported when there is one: few have it installed."""
    from influence_dag.store.icechunk.versions import IcechunkStore

    return IcechunkStore(address, **options)


BACKENDS: dict[str, Any] = {
    "": ArtifactStore,
    "memory": MemoryStore,
    "s3": _icechunk,
    "icechunk+file": _icechunk,
}
"""What makes a store of an address and its options, by the address's scheme (none: a path)."""


def open_store(address: str | Path, **options: Any) -> Store:
    """The store at an address: a folder's path, `memory://name` in this process, or `s3://…`.

    `options` are `keep_versions`, `lock_timeout`, `report`, and what the backend knows besides
    (`locks` of a folder). Nothing is created before something is written.
    """
    check_address(str(address))
    return BACKENDS[scheme_of(address)](address, **options)


def check_address(address: str) -> None:
    """A `StoreError` for an address of a backend that is not there, or not installed."""
    scheme = scheme_of(address)
    if BACKENDS.get(scheme) is _icechunk:
        from influence_dag.store.icechunk.places import check_place

        check_place(address)
    if scheme not in BACKENDS:
        known = ", ".join(f"{name}://…" for name in BACKENDS if name)
        raise StoreError(
            f"{address} is in no kind of store that is known ({scheme}); give the path of a "
            f"folder, or one of {known}"
        )
