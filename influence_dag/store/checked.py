"""A version's files as Zarr and xarray open them: only what is sound."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NoReturn, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from influence_dag.store.arrays import damaged, is_sound
from influence_dag.store.contents import Contents


class Checked(Store):
    """A version's files, read-only, each read whole.

    A chunk that is missing (Zarr would return the fill value) or a file whose checksum is not the
    published one raises a `StoreError` that names the artifact, the file and the cure. `checksums`
    has those of all files: whatever lies beside them is not there.
    """

    supports_writes = supports_deletes = supports_partial_writes = False  # pyright: ignore
    supports_listing = True  # pyright: ignore

    def __init__(
        self,
        contents: Contents,
        artifact: str,
        checksums: Mapping[str, int],
        *,
        read_only: bool = True,
    ) -> None:
        super().__init__(read_only=read_only)
        self.contents, self.artifact, self.checksums = contents, artifact, checksums

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checked) and self.contents == other.contents

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as Zarr's

    def __str__(self) -> str:
        return self.contents.address

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.contents, self.artifact, self.checksums, read_only=read_only)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        content = await self.contents.fetch(key) if key in self.checksums else None
        return self._sound(key, content, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        content = self.contents.read(key) if key in self.checksums else None
        return self._sound(key, content, prototype, byte_range)

    def _sound(
        self,
        key: str,
        content: bytes | None,
        prototype: BufferPrototype | None,
        byte_range: ByteRequest | None,
    ) -> Buffer | None:
        if key not in self.checksums:
            return None
        if byte_range is not None:
            raise NotImplementedError(
                f"{self}/{key} is read whole: of a part nobody has a checksum"
            )
        if content is None or not is_sound(key, content, self.checksums[key]):
            raise damaged(self.artifact, self.contents, key)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.checksums

    async def set(self, key: str, value: Buffer | None = None) -> NoReturn:
        raise ValueError("a version never changes: it is opened read-only")

    delete = set

    async def list(self) -> AsyncIterator[str]:
        for key in self.checksums:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.checksums:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        inside = (key.removeprefix(start) for key in self.checksums if key.startswith(start))
        for key in dict.fromkeys(each.partition("/")[0] for each in inside):
            yield key
