"""What a store for Zarr and xarray hands out: only what is sound."""

from collections.abc import Mapping

from zarr.core.buffer import Buffer

from influence_dag.store.arrays import damaged, is_sound
from influence_dag.store.contents import Contents


class Checked:
    """Mixed into a store of Zarr's, whose `get` passes what it has found through `checked`.

    A chunk that is missing (Zarr would return the fill value) or a file whose checksum is not the
    published one raises a `StoreError` that names the artifact, the file and the cure. `checksums`
    has those of all files.
    """

    contents: Contents
    artifact: str
    checksums: Mapping[str, int]

    def checked(self, key: str, content: Buffer | None) -> Buffer | None:
        expected = self.checksums.get(key)
        if expected is None:
            return content
        if content is None or not is_sound(key, content.as_numpy_array(), expected):
            raise damaged(self.artifact, self.contents, key)
        return content
