"""What a store for Zarr and xarray hands out: only what is sound."""

from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from influence_dag.store.arrays import damaged, is_sound
from influence_dag.store.contents import Contents

Files = TypeVar("Files", bound=Contents)


class Checked(Store, Generic[Files]):
    """A version's files, read-only; `get` passes what it has found through `checked`.

    A chunk that is missing (Zarr would return the fill value) or a file whose checksum is not the
    published one raises a `StoreError` that names the artifact, the file and the cure. `checksums`
    has those of all files. `given` is what the store of Zarr's takes into which this is mixed.
    """

    def __init__(
        self,
        contents: Files,
        *given: Any,
        artifact: str,
        checksums: Mapping[str, int],
        read_only: bool = True,
    ) -> None:
        super().__init__(*given, read_only=read_only)
        self.contents, self.artifact, self.checksums = contents, artifact, checksums

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.contents == other.contents

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as Zarr's

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(
            self.contents, artifact=self.artifact, checksums=self.checksums, read_only=read_only
        )

    def checked(self, key: str, content: Buffer | None) -> Buffer | None:
        expected = self.checksums.get(key)
        if expected is None:
            return content
        if content is None or not is_sound(key, content.as_numpy_array(), expected):
            raise damaged(self.artifact, self.contents, key)
        return content


class CheckedAtHand(Checked[Files]):
    """Mixed into a store of Zarr's that needs not wait for what it reads."""

    def can_read(self, key: str) -> bool:
        return True

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        there = self.can_read(key)
        found = await super().get(key, prototype, byte_range) if there else None  # type: ignore
        return self.checked(key, found)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        options = {"prototype": prototype, "byte_range": byte_range}
        content = super().get_sync(key, **options) if self.can_read(key) else None  # type: ignore
        return self.checked(key, content)
