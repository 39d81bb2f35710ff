"""A version in a repository as Zarr and xarray open it, each file checked as it is read."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn

from icechunk import IcechunkError
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from influence_dag.store.checked import Checked
from influence_dag.store.icechunk.names import key_of
from influence_dag.store.icechunk.repositories import found


class CheckedRepository(Checked[Any]):
    """A version's files, read-only."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key not in self.checksums:
            return None
        try:
            content = await self.contents.opened().get(key_of(key), prototype, byte_range)
        except IcechunkError as error:
            content = _what_is_left(error, f"reading {self.contents.address}/{key}", prototype)
        return self.checked(key, content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.checksums

    supports_writes = supports_deletes = supports_partial_writes = False  # pyright: ignore
    supports_listing = True  # pyright: ignore

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


def _what_is_left(error: IcechunkError, doing: str, prototype: BufferPrototype) -> Buffer | None:
    def again() -> NoReturn:
        raise error

    content = found(again, doing)
    return None if content is None else prototype.buffer.from_bytes(content)
