"""Versioned artifacts in Icechunk: a repository each, a version a tag, a draft a branch."""

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Unpack

from influence_dag.store.cloning import clone
from influence_dag.store.drafts import StoredDraft
from influence_dag.store.icechunk.contents import Draft, Kept
from influence_dag.store.icechunk.errors import is_rot, told
from influence_dag.store.icechunk.places import Place, check_place
from influence_dag.store.icechunk.repositories import DRAFT, Repository, quiet
from influence_dag.store.layout import Layout
from influence_dag.store.manifests import sealed, unsealed
from influence_dag.store.progress import Progress, finished_chunks
from influence_dag.store.published import StoredVersion
from influence_dag.store.publishing import finish
from influence_dag.store.versioned import (
    Options,
    VersionedStore,
    begun_for,
    check_name,
    refuse_locks,
)

KEPT_EVERY = 30.0  # seconds of work that a kill may cost
_JOURNAL = ".journal"  # no added file is called so


class IcechunkStore(VersionedStore[StoredVersion]):
    """The artifacts of one study below `s3://bucket/prefix/study` or `icechunk+file:///folder/study`.

    As `ArtifactStore` in all else. A process that is killed loses at most the chunks of the last
    half minute; versions that are no longer kept leave their objects to `gc`.
    """

    def __init__(self, address: str, *, locks: str = "flock", **options: Unpack[Options]) -> None:
        refuse_locks(address, locks, "an object store has locks of its own")
        check_place(address)
        quiet()
        super().__init__(address.rstrip("/"), **options)
        self._place = Place(self.address)
        self._repositories: dict[str, Repository] = {}
        self._tags: dict[str, int] = {}

    def current(self, name: str) -> StoredVersion | None:
        numbers = self._repository(name).numbers()
        return self._stored(name, numbers[-1]) if numbers else None

    def versions(self, name: str) -> list[StoredVersion]:
        return [self._stored(name, number) for number in self._repository(name).numbers()]

    def restore_pointer(self, name: str) -> None:
        """Let `main` lead to the newest version; note objects anew where all were read."""
        repository, current = self._repository(name), self.current(name)
        if current is None:
            return
        doubted = repository.is_doubtful(current.number)
        if not doubted and repository.branch("main") == repository.snapshot(current.number):
            return
        with self._writing(name):
            self._tidy(name)
            if doubted and not current.verify():
                repository.note_objects([current.number])

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        return self._held(name, ".refresh.lock")

    def free_bytes(self) -> int | None:
        return None

    def beside(self, artifact: str) -> list[str]:
        with told(f"listing {self.address}"):
            return self._place.beside(artifact)

    def _begun(self) -> list[str]:
        with told(f"listing {self.address}"):
            return self._place.artifacts()

    def _left(self, name: str) -> int:
        return finished_chunks(_Journal.left(self._repository(name))[1:])

    def _repository(self, name: str) -> Repository:
        check_name(name)
        return self._repositories.setdefault(name, Repository(self._place, name))

    def _stored(self, name: str, number: int) -> StoredVersion:
        repository = self._repository(name)
        version = StoredVersion(Kept(repository, number), name, number)
        tag = repository.tag(number)
        if self._tags.setdefault(version.address, tag) != tag:  # of a store that was made anew
            self._opened.pop(version.address, None)
            self._tags[version.address] = tag
        return self._known(version)

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return self._held(name, ".lock")

    def _held(self, name: str, file: str) -> AbstractContextManager[None]:
        check_name(name)
        return self._place.locked(
            name,
            file,
            timeout=self.lock_timeout,
            report=lambda said: self._report(f"{name}: {said}"),
        )

    def _explained(self, name: str, doing: str) -> AbstractContextManager[None]:
        return told(f"{doing} {self.address}")

    def _begin(self, name: str, layout: Layout) -> StoredDraft:
        repository, base = self._repository(name), self.base(name)
        repository.create()
        session = repository.begin_draft(base.number if base else None)
        before = base.files() if base else ()
        contents = Draft(repository, self._next_number(name), session, before)
        results = clone(base, layout, contents)
        contents.forget()
        journal = _Journal(contents, begun_for(layout, base) | {"results": results.to_json()}, [])
        return StoredDraft(name, contents, journal, layout, base)

    def _resume(self, name: str, layout: Layout) -> StoredDraft | None:
        try:
            return self._resumed(name, layout)
        except Exception as error:
            if not is_rot(error):
                raise
        return None  # what was unfinished goes

    def _resumed(self, name: str, layout: Layout) -> StoredDraft | None:
        repository, base = self._repository(name), self.base(name)
        left = _Journal.left(repository)
        if not left or not left[0].items() >= begun_for(layout, base).items():
            return None
        session = repository.repository.writable_session(DRAFT)
        contents = Draft(repository, self._next_number(name), session)
        contents.recall()
        return StoredDraft(name, contents, _Journal(contents, left[0], left[1:]), layout, base)

    def _publish(self, draft: StoredDraft) -> None:
        contents, repository = _contents_of(draft), self._repository(draft.artifact)
        finish(draft)
        repository.publish(contents.number, contents.snapshot)
        repository.note_objects([contents.number])
        repository.drop([version.number for version in self._surplus(draft.artifact)])

    def _abandon(self, draft: StoredDraft) -> None:
        self._repository(draft.artifact).drop_draft()

    def _tidy(self, name: str) -> None:
        self._repository(name).point_main()

    def _clean(self, name: str) -> list[str]:
        repository, surplus = self._repository(name), self._surplus(name)
        unfinished = f"{name}/versions/{DRAFT}" if repository.branch(DRAFT) else None
        repository.drop_draft()
        repository.drop([version.number for version in surplus])
        doubted = [each for each in repository.numbers() if repository.is_doubtful(each)]
        if not doubted:  # what is not as it was is not to be taken for collected
            repository.collect()
            repository.note_objects(repository.numbers())
        gone = [version.address.removeprefix(f"{self.address}/") for version in surplus]
        return [*([unfinished] if unfinished else []), *gone]


class _Journal(Progress):
    """What an unfinished version can be trusted for, kept in it: both are there or neither."""

    def __init__(
        self, contents: Draft, header: Mapping[str, Any], entries: list[dict[str, Any]]
    ) -> None:
        self.header, self.recovered = dict(header), list(entries)
        self._contents, self._entries = contents, list(entries)
        self._lock = threading.Lock()
        self._kept = time.monotonic()
        self._changed = False

    @staticmethod
    def left(repository: Repository) -> list[dict[str, Any]]:
        """Header and entries of an interrupted run; nothing where there is none."""
        if repository.branch(DRAFT) is None:
            return []
        draft = Draft(repository, 0, repository.repository.readonly_session(DRAFT))
        draft.names = {_JOURNAL}
        with suppress(ValueError):  # one that is damaged vouches for nothing
            return unsealed(draft.read(_JOURNAL) or b"")["entries"]
        return []

    def record(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._entries.append(entry)
            self._changed = True
            if time.monotonic() - self._kept < KEPT_EVERY or "done" not in entry:
                return
            self._kept = time.monotonic()
            self._keep()

    def close(self) -> None:
        with self._lock:
            if self._changed:
                self._keep()

    def discard(self) -> None:
        self._changed = False
        self._contents.repository.drop_draft()

    def _keep(self) -> None:
        self._contents.write(_JOURNAL, sealed({"entries": [self.header, *self._entries]}))
        self._contents.keep("unfinished")
        self._changed = False


def _contents_of(draft: StoredDraft) -> Draft:
    assert isinstance(draft.contents, Draft)
    return draft.contents
