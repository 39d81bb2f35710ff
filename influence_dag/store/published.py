"""A published version of an artifact: an ordinary Zarr v3 group that never changes again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError, UnreachableError
from influence_dag.fingerprints import Keys
from influence_dag.store.arrays import METADATA, chunk_file, crc32c, damaged, is_sound
from influence_dag.store.chunks import files_of, read_array, read_region
from influence_dag.store.contents import Contents
from influence_dag.store.layout import Variable
from influence_dag.store.manifests import (
    BLOCKS,
    FORMAT,
    KEYS,
    MANIFEST,
    STAMPS,
    Results,
    stored_variable,
    unsealed,
)
from influence_dag.store.npz import unpacked
from influence_dag.store.soundness import Damage, damaged_chunks, damaged_files

if TYPE_CHECKING:  # whoever only compares keys does not pay for their import
    import xarray as xr
    import zarr
    from zarr.abc.store import Store as ZarrStore


@dataclass(frozen=True, eq=False)
class StoredVersion:
    """One complete version: arrays, coordinates, attributes, and the keys they are right under.

    What its files say is the same in every backend; `contents` knows where they are. What readers
    may ask is told in `protocol.Version`.
    """

    contents: Contents
    artifact: str
    number: int

    def __repr__(self) -> str:
        return f"Version({self.artifact!r}, {self.number})"

    @property
    def address(self) -> str:
        return self.contents.address

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
        dataset = xr.open_zarr(self._store, chunks=None, consolidated=True)
        for coordinate in dataset.coords.values():
            coordinate.load()
        dataset.attrs |= self.results.attrs  # where the group has words, there are numbers
        if chunks is None:
            return dataset
        # Of text dask cannot say how large a block is.
        data = {name: array.variable for name, array in dataset.data_vars.items()}
        numbers = {name: each for name, each in data.items() if each.dtype.kind in "biufc"}
        return dataset.assign({name: each.chunk(chunks) for name, each in numbers.items()})

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

    def _damaged(self, file: str) -> StoreError:
        return damaged(self.artifact, self.contents, file)

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

    def keys(self, variable: str) -> Keys:
        return self._bookkeeping(variable, KEYS)

    def file(self, name: str) -> bytes:
        """The content of a file that was added to the version."""
        self._demand("file", name, self.results.files)
        return self._sound(name)

    def _demand(self, what: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            there = ", ".join(known) or "none"
            raise StoreError(f"{self.artifact} has no {what} {name!r}; it has {there}")

    @property
    def attrs(self) -> dict[str, Any]:
        return self._attrs

    @cached_property
    def _attrs(self) -> dict[str, Any]:
        attrs = dict(self._metadata["attributes"])
        attrs |= self.results.attrs  # in which numbers that are not finite are no words
        attrs.pop("coordinates", None)  # how xarray marks coordinates, and hides it too
        return attrs

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """The group's own file: its attributes and the metadata of its arrays."""
        return json.loads(self._sound(METADATA))

    @property
    def data_version(self) -> str:
        return self.manifest["data_version"]

    @property
    def layout_fingerprint(self) -> str:
        return self.manifest["layout_fingerprint"]

    @property
    def variables(self) -> dict[str, Variable]:
        return self._variables

    @cached_property
    def _variables(self) -> dict[str, Variable]:
        stored = self.manifest["variables"]
        return {name: stored_variable(name, told) for name, told in stored.items()}

    def encodes_like(self, variable: Variable) -> bool:
        """Whether this version's files of a variable could serve in a version of that one."""
        stored = self.manifest["variables"].get(variable.name)
        return stored is not None and stored["encoding"] == variable.encoding

    @property
    def parts(self) -> dict[str, str]:
        return self.manifest["parts"]

    @property
    def sizes(self) -> dict[str, int]:
        return self.manifest["sizes"]

    @property
    def results(self) -> Results:
        """What was set beside the planned variables when the version was made."""
        return Results(**self.manifest["results"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        try:
            manifest = unsealed(self.contents.read(MANIFEST) or b"")
        except ValueError as error:
            raise self._damaged(MANIFEST) from error
        if manifest.get("format") != FORMAT:
            raise StoreError(
                f"{self.artifact}: {self.address} was written by another influence_dag (format "
                f"{manifest.get('format')}, this one's is {FORMAT}); refresh it to have it "
                "computed again, or read it with plain xarray"
            )
        if (held := manifest.get("artifact", self.artifact)) != self.artifact:
            said = f"{self.artifact}: {self.address} is a version of {held}, copied into its place"
            raise StoreError(f"{said}; refresh it to have it computed again")
        return manifest

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

    def files(self) -> Iterator[str]:
        """Names of all files that were published, but for the manifest that says so."""
        yield from self.manifest["files"]
        for name, variable in self.variables.items():
            yield from (chunk_file(name, index) for index in np.ndindex(*variable.grid))

    def damaged_files(self, *, checksums: bool = False) -> list[Damage]:
        """Damage among metadata, coordinates, results and added files."""
        return damaged_files(self, checksums=checksums)

    def damaged_chunks(self, variable: str, *, checksums: bool = False) -> list[Damage]:
        """Damage among a variable's chunks."""
        return damaged_chunks(self, variable, checksums=checksums)

    def check_bookkeeping(self) -> None:
        """A `StoreError` when the manifest, or the keys or stamps of a variable, cannot be read."""
        for variable in self.variables:
            self._bookkeeping(variable, KEYS)
            self._bookkeeping(variable, STAMPS)

    @cached_property
    def _arrays(self) -> "dict[str, zarr.Array]":
        return {}

    @cached_property
    def _store(self) -> "ZarrStore":
        from influence_dag.store.checked import Checked

        return Checked(self.contents, self.artifact, self._checksums)

    def _expected(self, file: str) -> int:
        """The checksum that a chunk, of a variable or of labels, was published with."""
        if file in self.manifest["files"]:
            return self.manifest["files"][file][2]
        variable, _, chunk = file.rpartition("/")
        return int(self.chunk_checksums(variable)[tuple(map(int, chunk.split(".")[1:]))])

    @cached_property
    def _checksums(self) -> dict[str, int]:
        """What every file of the version was published with."""
        checksums = {name: entry[2] for name, entry in self.manifest["files"].items()}
        for variable in self.variables:
            stamps = self.stamps(variable)
            indices = np.ndindex(stamps.shape[:-1])
            values = stamps[..., 2].ravel().tolist()
            checksums |= {
                chunk_file(variable, index): value
                for index, value in zip(indices, values, strict=True)
            }
        return checksums

    def stamps(self, variable: str) -> NDArray[np.int64]:
        """Size, time of modification and checksum of a variable's chunks as they were published."""
        return self._bookkeeping(variable, STAMPS)

    def chunk_checksums(self, variable: str) -> NDArray[np.int64]:
        """The checksum that each chunk of a variable was published with, `(*grid,)`."""
        return self.stamps(variable)[..., 2]

    def _bookkeeping(self, variable: str, what: str) -> NDArray:
        self._demand("variable", variable, self.variables)
        try:
            return self._blocks[f"{variable}.{what}"]
        except KeyError as error:
            raise self._damaged(BLOCKS) from error

    @cached_property
    def _blocks(self) -> dict[str, NDArray]:
        """Keys and stamps of all chunks, read once: a version never changes."""
        content = self.contents.read(BLOCKS)
        if content is None or crc32c(content) != self.manifest["files"].get(BLOCKS, [None])[-1]:
            raise self._damaged(BLOCKS)
        try:
            return unpacked(content)
        except ValueError as error:
            raise self._damaged(BLOCKS) from error

    def _sound(self, name: str) -> bytes:
        """The content of one of the version's small files; a `StoreError` when it is another."""
        content = self.contents.read(name)
        if content is None or crc32c(content) != self.manifest["files"][name][2]:
            raise self._damaged(name)
        return content
