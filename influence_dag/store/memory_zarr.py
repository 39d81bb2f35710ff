"""A version in memory as Zarr and xarray open it, each file checked as it is read."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, NoReturn

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore as ZarrMemoryStore

from influence_dag.errors import StoreError
from influence_dag.store.checked import Checked

if TYPE_CHECKING:
    from influence_dag.store.memory import Memory


class _Buffers(MutableMapping[str, Buffer]):
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

    def __setitem__(self, name: str, value: Buffer) -> NoReturn:
        raise TypeError("a version never changes")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError("a version never changes")


class CheckedMemory(Checked, ZarrMemoryStore):
    """A version's files, read-only, checked as they are read."""

    def __init__(
        self,
        contents: "Memory",
        *,
        artifact: str,
        checksums: Mapping[str, int],
        read_only: bool = True,
    ) -> None:
        super().__init__(_Buffers(contents), read_only=read_only)
        self.contents, self.artifact, self.checksums = contents, artifact, checksums
        self._files = contents

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            f"{self.contents.address} is in the memory of one process and cannot be pickled; "
            "load what is needed first, or keep the study in a folder (`store.path`)"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedMemory) and self.contents is other.contents

    __hash__ = None  # as Zarr's

    def with_read_only(self, read_only: bool = False) -> "CheckedMemory":
        return CheckedMemory(
            self._files,
            artifact=self.artifact,
            checksums=self.checksums,
            read_only=read_only,
        )

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return self.checked(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self.checked(key, found)
