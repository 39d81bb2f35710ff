"""A published version of an artifact: an ordinary Zarr v3 group that never changes again."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError, UnreachableError
from influence_dag.store.arrays import is_sound
from influence_dag.store.blocks import in_blocks
from influence_dag.store.bookkeeping import Bookkeeping
from influence_dag.store.chunks import files_of, read_array, read_region
from influence_dag.store.manifests import MANIFEST
from influence_dag.store.soundness import Damage, damaged_chunks, damaged_files

if TYPE_CHECKING:  # whoever only compares keys does not pay for their import
    import xarray as xr
    import zarr
    from zarr.abc.store import Store as ZarrStore


@dataclass(frozen=True, eq=False)
class StoredVersion(Bookkeeping):
    """One complete version: arrays, coordinates, attributes, and the keys they are right under.

    What its files say is the same in every backend; `contents` knows where they are. What readers
    may ask is told in `protocol.Version`.
    """

    def zarr_store(self) -> "ZarrStore":
        return self._store

    def open(self, *, chunks: Literal["auto"] | None = "auto") -> "xr.Dataset":
        """The version as a lazy dataset: coordinates loaded, data read when asked for.

        Data are dask arrays of blocks of whole stored chunks, with `chunks=None` arrays that are
        read when they are used. A missing or damaged chunk raises a `StoreError` when it is read.
        The dataset stays on this version, whatever is published meanwhile.
        """
        import xarray as xr

        self.manifest  # noqa: B018  (a version that cannot be read fails here, with a clear error)
        store: Any = self._store  # of a kind that xarray takes and its types do not know
        dataset = xr.open_dataset(
            store, engine="zarr", consolidated=True, create_default_indexes=False
        )
        # By Zarr, each would wait for another thread.
        values = {name: self.coordinate(str(name)) for name in dataset.coords}
        dataset = dataset.assign_coords(
            {name: dataset.variables[name].copy(data=values[name]) for name in values}
        )
        dataset.attrs |= self.results.attrs  # where the group has words, there are numbers
        if chunks is None:
            return dataset
        # Of text dask cannot say how large a block is.
        kinds = {name: dataset.variables[name].dtype.kind for name in dataset.data_vars}
        numbers = [name for name, kind in kinds.items() if kind in "biufc"]
        return in_blocks(dataset, numbers, self.address, self.data_version)

    def array(self, variable: str) -> "zarr.Array":
        """A variable as a Zarr array; reading a missing or damaged chunk is a `StoreError`."""
        self._demand("variable", variable, self.variables)
        if variable not in self._arrays:
            import zarr

            self._arrays[variable] = zarr.open_array(self._store, path=variable, mode="r")
        return self._arrays[variable]

    def read(self, variable: str, *region: slice) -> NDArray:
        """Values of a region, given by slices along the leading dimensions; as `array`, sooner."""
        self._demand("variable", variable, self.variables)
        stored = self.variables[variable]
        read = self.contents.ahead(files_of(stored, region))
        return read_region(stored, region, lambda file: self._sound_chunk(file, read(file)))

    def _chunk(self, file: str) -> bytes:
        return self._sound_chunk(file, self.contents.read(file))

    def _sound_chunk(self, file: str, content: bytes | None) -> bytes:
        if content is None or not is_sound(file, content, self._expected(file)):
            raise self._damaged(file)
        return content

    @property
    def coordinates(self) -> list[str]:
        return self._metadata["attributes"].get("coordinates", "").split()

    def coordinate(self, name: str) -> NDArray:
        self._demand("coordinate", name, self.coordinates)
        if name in self.variables:
            return self.read(name)
        array = self._metadata["consolidated_metadata"]["metadata"][name]
        kind = array["data_type"]
        dtype = np.dtypes.StringDType() if kind == "string" else np.dtype(kind)
        return read_array(name, dtype, tuple(array["shape"]), self._chunk)

    def file(self, name: str) -> bytes:
        """The content of a file that was added to the version."""
        self._demand("file", name, self.results.files)
        return self._sound(name)

    @property
    def attrs(self) -> dict[str, Any]:
        return self._attrs

    @cached_property
    def _attrs(self) -> dict[str, Any]:
        attrs = dict(self._metadata["attributes"])
        attrs |= self.results.attrs  # in which numbers that are not finite are no words
        attrs.pop("coordinates", None)  # how xarray marks coordinates, and hides it too
        return attrs

    def verify(self, *, checksums: bool = False) -> tuple[Damage, ...]:
        """What of this version is missing or damaged; empty when it is sound.

        Files whose size and time of modification are as published are taken to be sound, others
        are read; with `checksums` every file is read. Bookkeeping that cannot be read is damage to
        the manifest.
        """
        try:
            damage = list(self.damaged_files(checksums=checksums))
            for variable in self.variables:
                damage += self.damaged_chunks(variable, checksums=checksums)
        except UnreachableError:
            raise
        except StoreError:
            return (Damage(MANIFEST, missing=not self.contents.has(MANIFEST)),)
        return tuple(damage)

    @property
    def is_complete(self) -> bool:
        """Whether its bookkeeping can be read and every file is there; contents are not read."""
        try:
            self.check_bookkeeping()
        except UnreachableError:
            raise
        except StoreError:
            return False
        return all(self.contents.stamp(name) is not None for name in self.files())

    def damaged_files(self, *, checksums: bool = False) -> list[Damage]:
        """Damage among metadata, coordinates, results and added files."""
        return damaged_files(self, checksums=checksums)

    def damaged_chunks(self, variable: str, *, checksums: bool = False) -> list[Damage]:
        """Damage among a variable's chunks."""
        return damaged_chunks(self, variable, checksums=checksums)

    @cached_property
    def _arrays(self) -> "dict[str, zarr.Array]":
        return {}

    @cached_property
    def _store(self) -> "ZarrStore":
        from influence_dag.store.checked import Checked

        return Checked(self.contents, self.artifact, self._checksums)
