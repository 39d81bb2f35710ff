"""A version in memory as Zarr and xarray open it, each file checked as it is read."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore as ZarrMemoryStore

from influence_dag.errors import StoreError
from influence_dag.store.checked import CheckedAtHand

if TYPE_CHECKING:
    from influence_dag.store.memory import Memory


class _Buffers(Mapping[str, Buffer]):
    """The files as Zarr has bytes; nothing is copied, nothing can be changed."""

    def __init__(self, contents: "Memory") -> None:
        self._contents = contents

    def __getitem__(self, name: str) -> Buffer:
        content = self._contents.read(name)
        if content is None:
            raise KeyError(name)
        return default_buffer_prototype().buffer.from_bytes(content)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._contents.files))

    def __len__(self) -> int:
        return len(self._contents.files)


class CheckedMemory(  # pyright: ignore[reportIncompatibleMethodOverride]
    CheckedAtHand["Memory"], ZarrMemoryStore
):
    """A version's files, read-only, checked as they are read."""

    def __init__(self, contents: "Memory", **options: Any) -> None:
        super().__init__(contents, _Buffers(contents), **options)

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            f"{self.contents.address} is in the memory of one process and cannot be pickled; "
            "load what is needed first, or keep the study in a folder (`store.path`)"
        )
