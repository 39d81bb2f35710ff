"""The files of a version in a repository: of a published one, and of one in the making."""

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype

from influence_dag.store.arrays import METADATA, is_chunk
from influence_dag.store.contents import Contents, Reader, Stamp
from influence_dag.store.icechunk.errors import found, is_theirs, left_by, told
from influence_dag.store.icechunk.names import BESIDE, key_of, name_of, node_of
from influence_dag.store.icechunk.repositories import DRAFT, Repository, tag_of
from influence_dag.store.icechunk.waiting import waited
from influence_dag.store.threads import UnderWay

if TYPE_CHECKING:
    from icechunk import IcechunkStore, Session

AT_ONCE = 32  # chunks that are asked for beside each other


class Kept:
    """The `Contents` of a published version."""

    def __init__(self, repository: Repository, number: int) -> None:
        self.repository, self.number = repository, number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.repository, self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and self.address == other.address

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    @property
    def address(self) -> str:
        return f"{self.repository.address}/versions/{tag_of(self.number)}"

    def is_kept(self) -> bool:
        return self.number in self.repository.numbers()

    def has(self, name: str) -> bool:
        return self.read(name) is not None

    def read(self, name: str) -> bytes | None:
        return found(lambda: get(self.opened(), name), f"reading {self.address}/{name}")

    async def fetch(self, name: str) -> bytes | None:
        try:
            content = await self.opened().get(key_of(name), default_buffer_prototype())
        except Exception as error:
            return left_by(error, f"reading {self.address}/{name}")
        return None if content is None else content.to_bytes()

    def ahead(self, names: Iterable[str]) -> Reader:
        """Some at once: a bucket is slow to answer, and answers many."""
        waiting, there = iter(names), dict[str, bytes | None]()

        def read(name: str) -> bytes | None:
            if name not in there:
                there.clear()
                there.update(self._read(list(itertools.islice(waiting, AT_ONCE))))
            return there.pop(name) if name in there else self.read(name)

        return read

    def _read(self, names: list[str]) -> dict[str, bytes | None]:
        """Those that can be read; of the others it is told one by one what is wrong."""
        store = self.opened()
        try:
            found = waited(_all(store, names))
        except Exception as error:
            if not is_theirs(error):
                raise
            return {}
        return {name: content for name, content in zip(names, found, strict=True) if content}

    def opened(self) -> "IcechunkStore":
        """As Icechunk opens it."""
        return self.repository.session(self.number).store

    def stamp(self, name: str) -> Stamp | None:
        """The same of all files that nobody doubts: a version's cannot be replaced."""
        if not self.repository.is_doubtful(self.number):
            return (0, 0)
        return (0, 1) if self.has(name) else None

    def doubt(self, name: str) -> None:
        self.repository.doubt(self.number)


async def _all(store: "IcechunkStore", names: list[str]) -> list[bytes | None]:
    prototype = default_buffer_prototype()
    found = await asyncio.gather(*(store.get(key_of(name), prototype) for name in names))
    return [None if content is None else content.to_bytes() for content in found]


class Draft:
    """The `Unfinished` contents of a version in the making, on the branch of that name.

    What is written is in the repository at once; that it belongs to the draft is there for the next
    run after `keep`.
    """

    def __init__(
        self, repository: Repository, number: int, session: "Session", before: Iterable[str] = ()
    ) -> None:
        self.repository, self.number = repository, number
        self._session, self._before = session, list(before)
        self.names: set[str] = set()
        self._written: set[str] = set()
        self._under_way = UnderWay()
        self.snapshot = session.snapshot_id  # the last that was kept

    @property
    def address(self) -> str:
        return f"{self.repository.address}/versions/{tag_of(self.number)}"

    def recall(self) -> None:
        """Which files an interrupted run has left."""
        keys = waited(_listed(self._session.store))
        self.names = self._written = {name for key in keys if (name := name_of(key))}

    def is_kept(self) -> bool:
        return True

    def has(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str) -> bytes | None:
        if name not in self.names:
            return None
        with self._using() as store:
            return found(lambda: get(store, name), f"reading {self.address}/{name}")

    def ahead(self, names: Iterable[str]) -> Reader:
        return self.read

    def stamp(self, name: str) -> Stamp | None:
        return (0, 0) if name in self.names else None

    def doubt(self, name: str) -> None:
        """Its readers are its writer, who knows."""

    async def fetch(self, name: str) -> bytes | None:
        return await asyncio.to_thread(self.read, name)

    def write(self, name: str, content: bytes) -> None:
        with self._using() as store:
            if name == METADATA:
                _put(store, METADATA, _without_members(content))
            elif name.endswith(f"/{METADATA}"):
                self._cut(store, name.removesuffix(f"/{METADATA}"), json.loads(content))
                _put(store, name, _with_slashes(content))
            if not is_chunk(name):
                _put(store, f"{node_of(name)}/{METADATA}", _bytes_array(len(content)))
            _put(store, key_of(name), content)
        with self._under_way.lock:
            self.names.add(name)
            self._written.add(name)

    def link(self, source: Contents, name: str) -> None:
        """It is there already: a draft begins as the version from which anything is taken."""
        self.names.add(name)

    def shares(self, source: Contents, name: str) -> bool:
        return name in self.names and name not in self._written

    def remove(self, name: str) -> None:
        below = {each for each in self.names if each == name or each.startswith(f"{name}/")}
        self.names -= below
        self._written -= below
        with self._using() as store:
            for node in (name, node_of(name), node_of(f"{name}/{METADATA}")):
                waited(store.delete_dir(node))

    def _cut(self, store: "IcechunkStore", array: str, metadata: dict[str, Any]) -> None:
        """Remove chunks that are none under new metadata, while it is known what they are."""
        cut = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        grid = [-(-n // c) for n, c in zip(metadata["shape"], cut, strict=True)]
        own = [name for name in self._before if name.startswith(f"{array}/c") and is_chunk(name)]
        beyond = [name for name in own if not _is_within(name, grid)]
        _forget(store, beyond)
        self._before = [name for name in self._before if name not in {*beyond}]

    def forget(self) -> None:
        """Remove what the version before had and this one has not taken over."""
        with self._using() as store:
            _forget(store, [name for name in self._before if name not in self.names])
        self._before = []

    def sweep(self, kept: Set[str]) -> None:
        for name in {each.partition("/")[0] for each in self.names} - kept:
            self.remove(name)
        with self._using() as store:  # arrays of nothing, and what of an earlier layout is left
            for each in set(waited(_listed_dir(store))) - kept - {BESIDE}:
                waited(store.delete_dir(each))

    def settle(self) -> None:
        self.keep("finished")

    def keep(self, why: str) -> None:
        """Let what was written be there for the next run."""
        with self._under_way.alone():
            if not self._session.has_uncommitted_changes:
                return
            with told(f"writing {self.repository.address}"):
                self.snapshot = self._session.commit(why)
                self._session = self.repository.repository.writable_session(DRAFT)

    @contextmanager
    def _using(self) -> Iterator["IcechunkStore"]:
        """The store, which nobody commits meanwhile."""
        self._under_way.begin()
        try:
            yield self._session.store
        finally:
            self._under_way.end()

    def explained(self, doing: str, *, size: int | None = None) -> AbstractContextManager[None]:
        return told(f"{doing} {self.repository.address}")


def get(store: "IcechunkStore", name: str) -> bytes | None:
    content = waited(store.get(key_of(name), default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def _put(store: "IcechunkStore", key: str, content: bytes) -> None:
    waited(store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


def _forget(store: "IcechunkStore", names: Iterable[str]) -> None:
    for name in names:
        waited(store.delete(key_of(name)))


def _is_within(chunk: str, grid: list[int]) -> bool:
    index = [int(each) for each in chunk.rpartition("/")[2].split(".")[1:]]
    return len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True))


async def _listed(store: "IcechunkStore") -> list[str]:
    return [key async for key in store.list()]


async def _listed_dir(store: "IcechunkStore") -> list[str]:
    return [key async for key in store.list_dir("") if key != METADATA]


def _without_members(content: bytes) -> bytes:
    """A group's metadata; Icechunk has those of its arrays at hand anyway."""
    metadata = json.loads(content)
    metadata.pop("consolidated_metadata", None)
    return json.dumps(metadata).encode()


def _with_slashes(content: bytes) -> bytes:
    metadata = json.loads(content)
    metadata["chunk_key_encoding"]["configuration"]["separator"] = "/"
    return json.dumps(metadata).encode()


def _bytes_array(size: int) -> bytes:
    shape = [max(size, 1)]
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
            "storage_transformers": [],
        }
    ).encode()
