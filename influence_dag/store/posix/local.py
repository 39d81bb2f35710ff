"""A version's folder as Zarr and xarray open it, each file checked as it is read."""

from collections.abc import Mapping
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from influence_dag.store.checked import Checked
from influence_dag.store.contents import Contents


class CheckedFolder(Checked, LocalStore):
    """A folder, read-only, whose files are checked as they are read."""

    def __init__(
        self,
        root: Path,
        *,
        contents: Contents,
        artifact: str,
        checksums: Mapping[str, int],
        read_only: bool = True,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.contents, self.artifact, self.checksums = contents, artifact, checksums

    def with_read_only(self, read_only: bool = False) -> "CheckedFolder":
        return type(self)(
            self.root,
            contents=self.contents,
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
        found = await super().get(key, prototype, byte_range) if self._is_file(key) else None
        return self.checked(key, found)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        options = {"prototype": prototype, "byte_range": byte_range}
        return self.checked(key, super().get_sync(key, **options) if self._is_file(key) else None)

    def _is_file(self, key: str) -> bool:
        """Whether it can be read: a pipe would be waited for."""
        return (self.root / key).is_file()
