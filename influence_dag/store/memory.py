"""A store in this process's memory: `memory://name`, for tests, notebooks and studies of a moment.

The same files as in a folder, encoded and checked alike, in dictionaries. What is stored is there
for every store that is opened at the address, until `discard` or the end of the process; another
process, a forked one too, sees none of what is written afterwards.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, Unpack

from influence_dag.errors import StoreError
from influence_dag.store.cloning import clone
from influence_dag.store.contents import Contents, Reader, Stamp
from influence_dag.store.drafts import StoredDraft
from influence_dag.store.layout import Layout
from influence_dag.store.progress import Progress, finished_chunks
from influence_dag.store.published import StoredVersion
from influence_dag.store.publishing import finish
from influence_dag.store.versioned import (
    DEEPEST,
    Options,
    Report,
    VersionedStore,
    begun_for,
    check_name,
    refuse_locks,
)

_generations = itertools.count(1)


@dataclass(frozen=True)
class _File:
    """What a file holds, and which of all that were ever written it is."""

    content: bytes
    generation: int = field(default_factory=lambda: next(_generations))


@dataclass(frozen=True, eq=False)
class Memory:
    """The `Contents` of a version, finished or not."""

    address: str
    files: dict[str, _File] = field(default_factory=dict)

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            f"{self.address} is in the memory of one process and cannot be pickled; load what is "
            "needed first, or keep the study in a folder (`store.path`)"
        )

    def is_kept(self) -> bool:
        """Always: whoever reads a removed version keeps it in memory."""
        return True

    def has(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str) -> bytes | None:
        file = self.files.get(name)
        return file and file.content

    async def fetch(self, name: str) -> bytes | None:
        return self.read(name)

    def ahead(self, names: Iterable[str]) -> Reader:
        return self.read

    def stamp(self, name: str) -> Stamp | None:
        """Size and generation."""
        file = self.files.get(name)
        return file and (len(file.content), file.generation)

    def doubt(self, name: str) -> None:
        if found := self.files.get(name):
            self.files[name] = _File(found.content)

    def write(self, name: str, content: bytes) -> None:
        self.files[name] = _File(bytes(content))

    def link(self, source: Contents, name: str) -> None:
        self.files[name] = _files(source)[name]

    def shares(self, source: Contents, name: str) -> bool:
        return self.files.get(name) is _files(source).get(name)

    def remove(self, name: str) -> None:
        for each in list(self.files):
            if each == name or each.startswith(f"{name}/"):
                del self.files[each]

    def sweep(self, kept: Set[str]) -> None:
        for name in {each.partition("/")[0] for each in list(self.files)} - kept:
            self.remove(name)

    def settle(self) -> None:
        """Nothing outlasts the process."""

    def explained(self, doing: str, *, size: int | None = None) -> AbstractContextManager[None]:
        return nullcontext()


def _files(contents: Contents) -> dict[str, _File]:
    assert isinstance(contents, Memory)
    return contents.files


class _Entries(Progress):
    """What an unfinished version in memory can be trusted for: it ends with its process."""

    def __init__(self, header: Mapping[str, Any], entries: list[dict[str, Any]]) -> None:
        self.header, self.entries, self.discarded = dict(header), entries, False
        self.recovered = list(entries)

    @property
    def finished(self) -> int:
        """How many chunks the next run will not be asked for."""
        return 0 if self.discarded else finished_chunks(self.entries)

    def record(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        self.discarded = True


@dataclass
class _Shelf:
    """One artifact: its versions, which of them is current, and the beginning of another."""

    versions: dict[int, Memory] = field(default_factory=dict)
    current: tuple[int, Memory] | None = None
    unfinished: "tuple[Memory, _Entries] | None" = None
    locks: "dict[str, _Lock]" = field(
        default_factory=lambda: {"writing": _Lock(), "refreshing": _Lock()}
    )

    def kept(self) -> list[tuple[int, Memory]]:
        """Oldest first; a writer may remove some meanwhile."""
        versions = dict(self.versions)
        return [(number, versions[number]) for number in sorted(versions)]


_shelves: dict[str, _Shelf] = {}
_opening = threading.Lock()


def discard(address: str) -> None:
    """Forget everything at an address and below it: `discard("memory://scratch")`."""
    with _opening:
        for each in [each for each in _shelves if f"{each}/".startswith(f"{address.rstrip('/')}/")]:
            del _shelves[each]


class MemoryStore(VersionedStore[StoredVersion]):
    """The artifacts of one study, in this process; as `ArtifactStore` in all else."""

    def __init__(self, address: str, *, locks: str = "flock", **options: Unpack[Options]) -> None:
        others = "threads of one process have locks of their own"
        refuse_locks(address, locks, others)
        super().__init__(address.rstrip("/"), **options)

    def current(self, name: str) -> StoredVersion | None:
        current = self._shelf(name).current
        return self._stored(name, *current) if current else None

    def versions(self, name: str) -> list[StoredVersion]:
        return [self._stored(name, *each) for each in self._shelf(name).kept()]

    def restore_pointer(self, name: str) -> None:
        """Nothing can be lost: there are no copies."""
        check_name(name)

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        return self._held(name, "refreshing")

    def free_bytes(self) -> int | None:
        return None

    def beside(self, artifact: str) -> list[str]:
        above = self.address.rpartition("/")[0]
        names = (each.removeprefix(f"{above}/") for each in list(_shelves))
        return sorted(
            each.removesuffix(f"/{artifact}")
            for each in names
            if each.partition("/")[2] == artifact
        )

    def _begun(self) -> list[str]:
        inside = f"{self.address}/"
        names = [each.removeprefix(inside) for each in list(_shelves) if each.startswith(inside)]
        return sorted(each for each in names if each.count("/") < DEEPEST and self._has(each))

    def _left(self, name: str) -> int:
        unfinished = self._shelf(name).unfinished
        return unfinished[1].finished if unfinished else 0

    def _has(self, name: str) -> bool:
        shelf = self._shelf(name)
        return bool(shelf.versions or shelf.unfinished)

    def _shelf(self, name: str, *, make: bool = False) -> _Shelf:
        check_name(name)
        address = f"{self.address}/{name}"
        with _opening:
            if make:
                return _shelves.setdefault(address, _Shelf())
            return _shelves.get(address) or _Shelf()

    def _stored(self, name: str, number: int, contents: Memory) -> StoredVersion:
        return self._known(StoredVersion(contents, name, number))

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return self._held(name, "writing")

    @contextmanager
    def _held(self, name: str, what: str) -> Iterator[None]:
        lock, place = self._shelf(name, make=True).locks[what], f"{self.address}/{name}"
        lock.acquire(place, self.lock_timeout, lambda said: self._report(f"{name}: {said}"))
        try:
            yield
        finally:
            lock.release()

    def _begin(self, name: str, layout: Layout) -> StoredDraft:
        shelf, base, number = self._shelf(name), self.base(name), self._next_number(name)
        contents = Memory(f"{self.address}/{name}/versions/{number:06d}")
        results = clone(base, layout, contents)
        entries = _Entries(begun_for(layout, base) | {"results": results.to_json()}, [])
        shelf.unfinished = contents, entries
        return StoredDraft(name, contents, entries, layout, base)

    def _resume(self, name: str, layout: Layout) -> StoredDraft | None:
        left, base = self._shelf(name).unfinished, self.base(name)
        if left is None:
            return None
        contents, before = left
        if before.discarded or not before.header.items() >= begun_for(layout, base).items():
            return None
        entries = _Entries(before.header, before.entries)
        self._shelf(name).unfinished = contents, entries
        return StoredDraft(name, contents, entries, layout, base)

    def _publish(self, draft: StoredDraft) -> None:
        shelf = self._shelf(draft.artifact)
        finish(draft)
        assert isinstance(draft.contents, Memory)
        number = int(draft.contents.address.rpartition("/")[2])
        shelf.versions[number] = draft.contents
        shelf.current, shelf.unfinished = (number, draft.contents), None
        self._remove(draft.artifact, self._surplus(draft.artifact))

    def _abandon(self, draft: StoredDraft) -> None:
        self._shelf(draft.artifact).unfinished = None

    def _clean(self, name: str) -> list[str]:
        shelf, surplus = self._shelf(name), self._surplus(name)
        unfinished = [shelf.unfinished[0].address] if shelf.unfinished else []
        shelf.unfinished = None
        self._remove(name, surplus)
        removed = [*unfinished, *(version.address for version in surplus)]
        return [each.removeprefix(f"{self.address}/") for each in removed]

    def _forget_removed(self, artifact: str) -> None:
        """By what there is: the contents of a removed version are whole for who still has them."""
        kept = {contents.address for _, contents in self._shelf(artifact).kept()}
        for address, (_, version) in list(self._opened.items()):
            if version.artifact == artifact and address not in kept:
                self._opened.pop(address, None)

    def _remove(self, name: str, versions: list[StoredVersion]) -> None:
        for version in versions:
            del self._shelf(name).versions[version.number]
            self._opened.pop(version.address, None)


class _Lock:
    """A lock between threads that can say who holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = "another thread"

    def acquire(self, place: str, timeout: float, report: Report) -> None:
        if not self._lock.acquire(blocking=False):
            report(f"waiting for {self._holder}, which writes {place}")
            if not self._lock.acquire(timeout=timeout):
                raise StoreError(
                    f"{place} is being written by {self._holder}; waited {timeout:g} s. Try again "
                    "when it is done, or raise `store.lock_timeout`"
                )
        thread = threading.current_thread().name
        self._holder = f"thread {thread} of process {os.getpid()} (since {time.ctime()})"

    def release(self) -> None:
        self._lock.release()
