"""The Icechunk repository of one artifact, and what was seen of its objects.

A version is a tag, `000007`: a name that is given once, to a snapshot that never changes. `main`
leads to the current version, for who opens the repository with plain Icechunk; `draft` is what is
being written; `empty` is what a repository begins with.

What Icechunk keeps never changes, but a bucket loses and replaces objects as any disk does. So it
is noted which objects there were when a version was published: while all are there, nothing of it
has to be read to be known. When one is not, or a reader found something wrong, all of it is read.
"""

import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.errors import StoreError
from influence_dag.store.icechunk.errors import told
from influence_dag.store.icechunk.places import REPOSITORY, Place
from influence_dag.store.icechunk.waiting import check_process

if TYPE_CHECKING:
    from icechunk import Repository as Opened
    from icechunk import Session

LOOKING = 2.0  # seconds between looks at which objects there are
MAIN, DRAFT, EMPTY = "main", "draft", "empty"
_SEEN = f"{REPOSITORY}/influence_dag/objects"
_TAG = re.compile(r"\d{6,}")


class Repository:
    """One artifact's versions, by number."""

    def __init__(self, place: Place, artifact: str) -> None:
        self.place, self.artifact = place, artifact
        self._snapshots: dict[int, str] = {}
        self._sessions: dict[int, Session] = {}
        self._tags: dict[int, int] = {}
        self._looked: _Look | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.place, self.artifact)

    @property
    def address(self) -> str:
        return f"{self.place.address}/{self.artifact}"

    @cached_property
    def opened(self) -> "Opened | None":
        """None before the first version was begun; asked for again then."""
        import icechunk

        storage = self.place.storage(self.artifact)
        with told(f"opening {self.address}"):
            if icechunk.Repository.exists(storage):
                return icechunk.Repository.open(storage)
        return None

    @property
    def repository(self) -> "Opened":
        if (opened := self.known()) is None:
            raise StoreError(
                f"{self.address}/{REPOSITORY} is gone, or its branch `main`; remove what is left "
                "of it and refresh"
            )
        return opened

    def known(self) -> "Opened | None":
        check_process(self.address)
        if (opened := self.opened) is None:
            del self.opened
        return opened

    def create(self) -> None:
        """Make it where there is none, without chunks inside of manifests: each can be told."""
        if self.known() is not None:
            return
        import icechunk

        config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
        with told(f"making {self.address}/{REPOSITORY}"):
            made = icechunk.Repository.create(self.place.storage(self.artifact), config)
            made.save_config()
            made.create_branch(EMPTY, made.lookup_branch(MAIN))
        self.opened = made

    def numbers(self) -> list[int]:
        """Of the kept versions, oldest first."""
        with told(f"looking for versions of {self.address}"):
            found = self.place.tags(self.artifact)
        tags = {int(tag): each for tag, each in found.items() if _TAG.fullmatch(tag)}
        if any(self._tags.get(number, each) != each for number, each in tags.items()):
            self._forget()
        self._tags |= tags
        return sorted(tags)

    def _forget(self) -> None:
        """A number is given once: the repository was removed, and another is in its place."""
        for known in (self._snapshots, self._sessions, self._tags):
            known.clear()
        self._looked = None
        self.__dict__.pop("opened", None)

    def tag(self, number: int) -> int:
        """A number for the object that says which snapshot a version is, as it was last listed."""
        return self._tags.get(number, 0)

    def snapshot(self, number: int) -> str:
        if number not in self._snapshots:
            with told(f"looking for version {number} of {self.address}"):
                self._snapshots[number] = self.repository.lookup_tag(tag_of(number))
        return self._snapshots[number]

    def session(self, number: int) -> "Session":
        """A version, read-only."""
        check_process(self.address)
        if number not in self._sessions:
            self._sessions[number] = self.repository.readonly_session(
                snapshot_id=self.snapshot(number)
            )
        return self._sessions[number]

    def branch(self, name: str) -> str | None:
        """The snapshot that a branch leads to."""
        opened = self.known()
        with told(f"looking at {self.address}"):
            return opened.lookup_branch(name) if opened and name in opened.list_branches() else None

    def begin_draft(self, number: int | None) -> "Session":
        """An unfinished version that begins as this one, or empty; none else is left."""
        from_snapshot = self.snapshot(number) if number else self.branch(EMPTY)
        assert from_snapshot
        self.drop_draft()
        self.repository.create_branch(DRAFT, from_snapshot)
        return self.repository.writable_session(DRAFT)

    def drop_draft(self) -> None:
        if self.branch(DRAFT):
            with told(f"removing what was unfinished of {self.address}"):
                self.repository.delete_branch(DRAFT)

    def publish(self, number: int, snapshot: str) -> None:
        """Let what was written be that version, in one step; whoever comes second is told."""
        try:
            self.repository.create_tag(tag_of(number), snapshot)
        except Exception as error:
            if number not in self.numbers():
                raise
            raise StoreError(
                f"{self.address}: version {number} was published by another writer meanwhile, and "
                "stays; refresh again to go on from it"
            ) from error
        self.point_main()
        if self.branch(DRAFT) == snapshot:  # not what another writer has begun since
            self.drop_draft()

    def point_main(self) -> None:
        """Let `main` lead to the newest version, where a kill came in between."""
        if (numbers := self.numbers()) and self.branch(MAIN) != self.snapshot(numbers[-1]):
            with told(f"pointing {self.address} to its version"):
                self.repository.reset_branch(MAIN, self.snapshot(numbers[-1]))

    def drop(self, numbers: list[int]) -> None:
        """Versions are no more; their objects go when they are collected."""
        for number in numbers:
            with told(f"removing version {number} of {self.address}"):
                self.repository.delete_tag(tag_of(number))
            self._snapshots.pop(number, None)
            self._sessions.pop(number, None)

    def collect(self) -> None:
        """Remove objects that no version needs; the one writer asks for it."""
        now = datetime.now(UTC)
        with told(f"collecting garbage of {self.address}"):
            self.repository.expire_snapshots(now)
            self.repository.garbage_collect(now)

    # What was seen of the objects

    def is_doubtful(self, number: int) -> bool:
        """Whether a version has to be read to be known, because its objects are not as before."""
        return self._look().makes_doubtful(number)

    def doubt(self, number: int) -> None:
        """Something was found wrong with a version: it is to be read from now on."""
        look = self._look()
        if look.noted is not None and number not in look.doubted:
            with suppress(Exception):  # a reader may not be allowed to
                self._note(look.doubted | {number}, look.noted)

    def note_objects(self, trusted: Iterable[int] = ()) -> None:
        """Which objects there are now; versions in doubt stay so, but for those that are known."""
        self._looked = None
        look = self._look()
        doubted = set(self.numbers()) if look.is_disturbed else look.doubted
        with told(f"noting the objects of {self.address}"):
            self._note(doubted - {*trusted}, look.there)

    def look_again(self) -> None:
        """Forget what was seen a moment ago."""
        self._looked = None

    def _look(self) -> "_Look":
        if self._looked is None or time.monotonic() - self._looked.when > LOOKING:
            with told(f"listing the objects of {self.address}"):
                content = self.place.read(f"{self.artifact}/{_SEEN}")
                there = self.place.objects(self.artifact)
            self._looked = _Look(*_read_note(content or b""), there)
        return self._looked

    def _note(self, doubted: set[int], objects: np.ndarray) -> None:
        head = json.dumps({"doubted": sorted(doubted)}).encode()
        there = objects if self._looked is None else self._looked.there
        self._looked = _Look(doubted, objects, there)
        self.place.write(f"{self.artifact}/{_SEEN}", head + b"\n" + objects.tobytes())


class _Look:
    """Which objects there are beside those that were noted, and which versions are in doubt."""

    def __init__(self, doubted: set[int], noted: np.ndarray | None, there: np.ndarray) -> None:
        self.doubted, self.noted, self.there = doubted, noted, there
        self.when = time.monotonic()
        self.is_disturbed = noted is None or not np.isin(noted, there).all()

    def makes_doubtful(self, number: int) -> bool:
        return self.is_disturbed or number in self.doubted


def _read_note(content: bytes) -> tuple[set[int], np.ndarray | None]:
    with suppress(ValueError, TypeError, KeyError):
        head, _, objects = content.partition(b"\n")
        return set(json.loads(head)["doubted"]), np.frombuffer(objects, np.uint64)
    return set(), None


def tag_of(number: int) -> str:
    return f"{number:06d}"


def quiet() -> None:
    """Icechunk warns of folders, where it has no lock; here there is one."""
    if "ICECHUNK_LOG" not in os.environ:
        import icechunk

        icechunk.set_logs_filter("error")
