"""A version in the making: a clone of the current one that is written chunk by chunk."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.fingerprints import Keys, fingerprint
from influence_dag.store import plans
from influence_dag.store.arrays import plain, round_mantissas, written
from influence_dag.store.chunks import check_whole_chunks, read_region, write_array, write_chunk
from influence_dag.store.contents import Unfinished
from influence_dag.store.layout import RESERVED_NAMES, ChunkIndex, Coordinate, Layout, Variable
from influence_dag.store.manifests import UNKNOWN, Results
from influence_dag.store.progress import Progress
from influence_dag.store.threads import POLL_SECONDS, UnderWay

if TYPE_CHECKING:
    from influence_dag.store.published import StoredVersion


class StoredDraft:
    """What a store's `new_version` gives: write the outdated chunks, it does the rest.

    `base` is the version it was cloned from, `resumed` says whether an interrupted run left
    something; after the `with` block `version` is the current one. Results (`set_result`,
    `set_attrs`, `add_file`) of the base or of the interrupted run stay as long as no chunk is
    written: the first write drops them, because they might no longer be true. So a stage sets its
    results, after it computed, where the draft `lacks` them.
    """

    def __init__(
        self,
        artifact: str,
        contents: Unfinished,
        progress: Progress,
        layout: Layout,
        base: "StoredVersion | None",
    ) -> None:
        self.artifact, self.contents, self.layout, self.base = artifact, contents, layout, base
        self.version: StoredVersion | None = None
        self.chunks_written = self.bytes_written = 0
        self.resumed = bool(progress.recovered)
        self._progress = progress
        self._under_way, self._closed = UnderWay(), False
        self._lock = self._under_way.lock
        self._expected: plans.Expected = {}
        self._keys = {v.name: plans.carry(base, v)[0] for v in layout.variables}
        self._checksums = {v.name: _carried(base, v, self._keys[v.name]) for v in layout.variables}
        self._inherited, self._own = Results(**progress.header["results"]), Results()
        self._recover()

    @property
    def results(self) -> Results:
        """What will be published beside the variables."""
        return self._inherited.with_newer(self._own)

    def forget(self) -> None:
        """Vouch for nothing that was written: the next run begins anew."""
        self._progress.discard()

    def lacks(self, *names: str) -> bool:
        """Whether one of these results (arrays, attributes, files) has to be set."""
        results = self.results
        return not {*results.arrays, *results.attrs, *results.files}.issuperset(names)

    def outdated(self, expected: plans.Expected) -> dict[str, list[ChunkIndex]]:
        """Chunks that this draft does not hold under their expected keys.

        Publishing later insists that every one of them was written.
        """
        plans.check_expected(self.layout, expected)
        self._expected = expected
        stale = {name: plans.is_outdated(keys, self._keys[name]) for name, keys in expected.items()}
        return {name: plans.chunk_indices(mask) for name, mask in stale.items()}

    def keys(self, variable: str) -> Keys:
        """The keys of what the draft holds now; zeros where nothing has been computed."""
        return self._keys[self.layout[variable].name]

    def checksums(self, variable: str) -> NDArray[np.int64]:
        """The checksum of each chunk; `UNKNOWN` of those that an interrupted run wrote."""
        return self._checksums[variable]

    def read(self, variable: str, *region: slice) -> NDArray:
        """Values of a region as they are now, given by slices along the leading dimensions."""
        return read_region(self.layout[variable], region, partial(written, self.contents))

    def write(
        self,
        variable: str,
        start: tuple[int, ...],
        values: NDArray,
        keys: Mapping[ChunkIndex, bytes],
    ) -> None:
        """Write a region of whole chunks that begins at `start`, with the key of each chunk.

        Different chunks may be written from several threads. Anything unaligned is a `StoreError`:
        two writers of one chunk would lose each other's values silently.
        """
        target = self.layout[variable]
        check_whole_chunks(target, start, values, keys)
        if target.max_relative_error:
            values = round_mantissas(values, target.max_relative_error)
        with self._writing(variable, values.nbytes):
            self._begin_writing(variable, keys)
            size = sum(self._write_chunk(target, start, values, index) for index in keys)
            self._progress.done(variable, keys)
        with self._lock:
            _assign(self._keys[variable], keys)
            self.chunks_written += len(keys)
            self.bytes_written += size

    def _write_chunk(
        self, variable: Variable, start: tuple[int, ...], values: NDArray, index: ChunkIndex
    ) -> int:
        region = zip(variable.region(index), start, strict=True)
        inside = tuple(slice(s.start - first, s.stop - first) for s, first in region)
        written = write_chunk(self.contents, variable, index, values[inside])
        self._checksums[variable.name][index] = written.checksum
        return written.size

    def set_attrs(self, **attrs: Any) -> None:
        """Attributes that are results (solver info), next to the layout's own."""
        self._keep(Results(attrs=plain(attrs)))

    def set_result(
        self,
        name: str,
        dims: tuple[str, ...],
        values: NDArray,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """A small array that came out of the computation (`niter`, a spectrum): a coordinate."""
        result = Coordinate(name, tuple(dims), values, dict(attrs or {}))
        self._check_fits(result)
        with self._writing(name, result.values.nbytes):
            self._drop(name)
            self.contents.remove(name)
            write_array(self.contents, result)
        self._keep(Results(arrays={name: list(dims)}))

    def add_file(self, name: str, content: bytes) -> None:
        """Put a file of another format (a checkpoint) beside the version's arrays."""
        if not name or "/" in name or name.startswith(".") or name in self._taken():
            raise StoreError(f"{name!r} cannot be the name of a file in {self.artifact}")
        with self._writing(name, len(content)):
            self._drop(name)
            self.contents.write(name, content)
        self._keep(Results(files=[name]))

    @property
    def changed(self) -> bool:
        """Whether publishing would show a reader anything new."""
        return (
            self.base is None
            or self.resumed
            or self.chunks_written > 0
            or bool(self._own.arrays or self._own.files)
            or fingerprint(self.results.attrs) != fingerprint(self.base.results.attrs)
            or not plans.holds_layout(self.base, self.layout)
        )

    def check_complete(self) -> None:
        """A `StoreError` when a chunk was never computed, or not for the expected key."""
        for name, keys in self._keys.items():
            wrong = ~plans.is_present(keys)
            if name in self._expected:
                wrong |= plans.is_outdated(self._expected[name], keys)
            if wrong.any():
                raise StoreError(
                    f"{self.artifact}: {wrong.sum()} of {wrong.size} chunks of {name!r} were not "
                    f"written, the first is {plans.chunk_indices(wrong)[0]}; nothing was published"
                )

    def close(self) -> None:
        """Take no more writes and wait for those under way, interrupted or not."""
        with self._lock:
            closed, self._closed = self._closed, True
        while self._under_way.others():
            with suppress(BaseException):  # an impatient second interrupt
                time.sleep(POLL_SECONDS)
        if not closed:
            self._progress.close()

    @contextmanager
    def _writing(self, name: str, size: int) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.artifact} is closed: write inside its `with` block")
            self._under_way.begin()
        try:
            with self.contents.explained(f"writing {self.artifact}/{name} in", size=size):
                yield
        finally:
            self._under_way.end()

    def _recover(self) -> None:
        for entry in self._progress.recovered:
            if "results" in entry:
                self._inherited = Results(**entry["results"])
                continue
            chunks = [tuple(index) for index in entry["chunks"]]
            none = [bytes(16)] * len(chunks)
            keys = map(bytes.fromhex, entry["keys"]) if "done" in entry else none
            name = entry.get("done") or entry["dirty"]
            _assign(self._keys[name], dict(zip(chunks, keys, strict=True)))
            for index in chunks:
                self._checksums[name][index] = UNKNOWN

    def _begin_writing(self, variable: str, chunks: Iterable[ChunkIndex]) -> None:
        with self._lock:
            if self._inherited != Results():
                self._inherited = Results()
                self._progress.note(results=self._own.to_json())
            self._progress.dirty(variable, chunks)
            for index in chunks:
                self._keys[variable][index] = 0

    def _keep(self, results: Results) -> None:
        with self._lock, self.contents.explained(f"writing {self.artifact} in"):
            self._own = self._own.with_newer(results)
            self._progress.note(results=self.results.to_json())

    def _drop(self, name: str) -> None:
        """Disown a result before it is replaced, so that a kill leaves none rather than half."""
        with self._lock:
            self._inherited, self._own = self._inherited.without([name]), self._own.without([name])
            self._progress.note(results=self.results.to_json())

    def _taken(self) -> set[str]:
        layout = (*self.layout.variables, *self.layout.coordinates)
        return {*RESERVED_NAMES, *(item.name for item in layout)}

    def _check_fits(self, result: Coordinate) -> None:
        if result.name in self._taken():
            raise StoreError(f"{self.artifact} has {result.name!r} already, in its layout")
        for dim, length in zip(result.dims, result.values.shape, strict=True):
            if self.layout.sizes.get(dim, length) != length:
                raise StoreError(
                    f"result {result.name!r} has {length} values along {dim!r}, "
                    f"{self.artifact} has {self.layout.sizes[dim]}"
                )


def _carried(base: "StoredVersion | None", variable: Variable, keys: Keys) -> NDArray[np.int64]:
    """The checksums of a version's chunks that are linked under another's shape.

    What was put in their place since they were published does not become right by being linked.
    """
    checksums = np.full(variable.grid, UNKNOWN, np.int64)
    if base is not None and plans.is_present(keys).any():
        before = base.chunk_checksums(variable.name)
        both = tuple(slice(min(sizes)) for sizes in zip(variable.grid, before.shape, strict=True))
        checksums[both] = np.where(plans.is_present(keys)[both], before[both], UNKNOWN)
    return checksums


def _assign(keys: Keys, new: Mapping[ChunkIndex, bytes]) -> None:
    for index, key in new.items():
        keys[index] = list(key)
