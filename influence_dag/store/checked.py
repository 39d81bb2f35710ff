"""A store for Zarr and xarray that hands out only what is sound."""

import os
from collections.abc import Mapping
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from influence_dag.store.arrays import damaged, is_sound


class CheckedStore(LocalStore):
    """A version's folder, read-only, whose files are checked as they are read.

    A chunk that is missing (zarr would return the fill value) or a file whose checksum is not the
    published one raises a `StoreError` that names the artifact, the file and the cure. `checksums`
    has those of all files.
    """

    def __init__(
        self,
        root: Path,
        *,
        artifact: str = "",
        checksums: Mapping[str, int] | None = None,
        read_only: bool = True,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.artifact, self.checksums = artifact, {} if checksums is None else checksums

    def with_read_only(self, read_only: bool = False) -> "CheckedStore":
        options = {"artifact": self.artifact, "checksums": self.checksums}
        return type(self)(self.root, read_only=read_only, **options)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range) if self._is_file(key) else None
        return self._checked(key, found)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        options = {"prototype": prototype, "byte_range": byte_range}
        return self._checked(key, super().get_sync(key, **options) if self._is_file(key) else None)

    def _is_file(self, key: str) -> bool:
        """Whether it can be read: a pipe would be waited for."""
        return (self.root / key).is_file()

    def _checked(self, key: str, content: Buffer | None) -> Buffer | None:
        expected = self.checksums.get(key)
        if expected is None:
            return content
        if content is None:
            missing = not os.path.lexists(self.root / key)
            raise damaged(self.artifact, self.root, key, missing=missing)
        if not is_sound(key, content.as_numpy_array(), expected):
            raise damaged(self.artifact, self.root, key, missing=False)
        return content
