"""What is noted of a version's files: its manifest, keys and stamps of its chunks, checksums."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.fingerprints import Keys
from influence_dag.store.arrays import METADATA, chunk_file, crc32c, damaged
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


@dataclass(frozen=True, eq=False)
class Bookkeeping:
    """A version's, in whatever backend: each file is checked against what was published."""

    contents: Contents
    artifact: str
    number: int

    def __repr__(self) -> str:
        return f"Version({self.artifact!r}, {self.number})"

    @property
    def address(self) -> str:
        return self.contents.address

    def _damaged(self, file: str) -> StoreError:
        return damaged(self.artifact, self.contents, file)

    def keys(self, variable: str) -> Keys:
        return self._bookkeeping(variable, KEYS)

    def _demand(self, what: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            there = ", ".join(known) or "none"
            raise StoreError(f"{self.artifact} has no {what} {name!r}; it has {there}")

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

    def files(self) -> Iterator[str]:
        """Names of all files that were published, but for the manifest that says so."""
        yield from self.manifest["files"]
        for name, variable in self.variables.items():
            yield from (chunk_file(name, index) for index in np.ndindex(*variable.grid))

    def check_bookkeeping(self) -> None:
        """A `StoreError` when the manifest, or the keys or stamps of a variable, cannot be read."""
        for variable in self.variables:
            self._bookkeeping(variable, KEYS)
            self._bookkeeping(variable, STAMPS)

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
