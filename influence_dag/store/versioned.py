"""What every backend's store shares: plan, draft, publish, keep, compare.

A backend says where versions are and how one writer at a time is kept; when a version is begun,
resumed, published or removed is the same everywhere.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypedDict, TypeVar

from influence_dag.errors import StoreError, UnreachableError
from influence_dag.store.cloning import describe_again
from influence_dag.store.differences import Difference
from influence_dag.store.drafts import StoredDraft
from influence_dag.store.layout import Layout
from influence_dag.store.manifests import BLOCKS, MANIFEST
from influence_dag.store.plans import Expected, Plan, make_plan
from influence_dag.store.published import StoredVersion
from influence_dag.texts import did_you_mean
from influence_dag.unchanged import ChangedError

Report = Callable[[str], None]
Kept = TypeVar("Kept", bound=StoredVersion)

DEEPEST = 3  # parts of an artifact's name
_PART = re.compile(r"\w[\w.-]*")
TAKEN = frozenset({"versions", "current"})  # no artifact's, in any backend: stores can be copied


class Options(TypedDict, total=False):
    """What any store can be told."""

    keep_versions: int
    lock_timeout: float
    report: Report


class VersionedStore(ABC, Generic[Kept]):
    """The artifacts of one study at one address; names may have slashes (`direct/influences`).

    One writer an artifact at a time; another waits up to `lock_timeout` seconds and tells `report`
    for whom. Readers need no lock.
    """

    def __init__(
        self,
        address: str,
        *,
        keep_versions: int = 5,
        lock_timeout: float = 60.0,
        report: Report = lambda message: None,
    ) -> None:
        if keep_versions < 1:
            raise StoreError(f"keep_versions is {keep_versions}; at least the current one is kept")
        self.address = address
        self.keep_versions, self.lock_timeout = keep_versions, lock_timeout
        self._opened: dict[str, tuple[object, Kept]] = {}
        self._report = report

    @property
    def name(self) -> str:
        """The study's: the last part of the address."""
        return self.address.rpartition("/")[2]

    # What a backend says

    @abstractmethod
    def current(self, name: str) -> Kept | None:
        """The newest complete version; None before the first."""

    @abstractmethod
    def versions(self, name: str) -> list[Kept]:
        """All kept versions, oldest first."""

    @abstractmethod
    def restore_pointer(self, name: str) -> None:
        """Put right what says which version is current, where a copy or a kill has left it so."""

    @abstractmethod
    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Keep others from working on the same artifact until the block ends.

        For work that is done before there is anything to write; `new_version` has its own lock.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """How much there is room for; None where nobody knows."""

    @abstractmethod
    def beside(self, artifact: str) -> list[str]:
        """Names of the stores next to this one that have such an artifact."""

    @abstractmethod
    def _begun(self) -> list[str]:
        """The artifacts that have a version or the beginning of one, sorted."""

    @abstractmethod
    def _left(self, name: str) -> int:
        """How many finished chunks interrupted runs have left for the next one."""

    @abstractmethod
    def _writing(self, name: str) -> AbstractContextManager[None]:
        """Be the one writer of an artifact until the block ends."""

    @abstractmethod
    def _resume(self, name: str, layout: Layout) -> StoredDraft | None:
        """The unfinished version of an interrupted run, if it was begun for the same."""

    @abstractmethod
    def _begin(self, name: str, layout: Layout) -> StoredDraft:
        """A fresh clone of the current version; whatever was unfinished goes."""

    @abstractmethod
    def _publish(self, draft: StoredDraft) -> None:
        """Let a finished draft be current, in one step; remove what is surplus."""

    @abstractmethod
    def _abandon(self, draft: StoredDraft) -> None:
        """Remove a draft that has nothing new."""

    @abstractmethod
    def _clean(self, name: str) -> list[str]:
        """Remove what is surplus or unfinished; what that was, by name below the address."""

    def _tidy(self, name: str) -> None:
        """Finish or remove what a kill left behind; the artifact's one writer asks for it."""

    def _explained(self, name: str, doing: str) -> AbstractContextManager[None]:
        """Inside, what the backend fails with is a `StoreError` that says what to do."""
        return nullcontext()

    # What follows from it

    def names(self) -> list[str]:
        return [name for name in self._begun() if self.current(name)]

    def unfinished(self) -> dict[str, int]:
        return {name: count for name in self._begun() if (count := self._left(name))}

    def base(self, name: str) -> Kept | None:
        """The current version as something to start from: None when its bookkeeping is damaged."""
        return _readable(self.current(name))

    def version(self, name: str, number: int | None = None) -> Kept:
        """One version by number, by default the current one."""
        if number is None:
            if version := self.current(name):
                return version
            known = self.names()
            raise StoreError(
                f"{self.address} has no {name!r} yet{did_you_mean(name, known)}; it has "
                f"{', '.join(known) or 'none'}"
            )
        versions = {version.number: version for version in self.versions(name)}
        if number not in versions:
            raise StoreError(f"{name} has no version {number}; kept are {sorted(versions)}")
        return versions[number]

    def diff(self, name: str, before: int, after: int | None = None) -> Difference:
        return Difference(self.version(name, before), self.version(name, after))

    def plan(self, name: str, layout: Layout, expected: Expected) -> Plan:
        return make_plan(self.base(name), layout, expected)

    @contextmanager
    def new_version(self, name: str, layout: Layout) -> Iterator[StoredDraft]:
        """A draft to write into; published when the block ends, unless nothing changed.

        An exception leaves the current version as it was and keeps what was finished for the next
        run with the same layout, unless code was edited meanwhile: then nobody knows what it is of.
        """
        check_name(name)
        with self._writing(name):
            with self._explained(name, f"preparing a version of {name} in"):
                self._tidy(name)
                if draft := self._resume(name, layout):
                    describe_again(layout, draft.contents)
                else:
                    draft = self._begin(name, layout)
            try:
                yield draft
                draft.close()
                with self._explained(name, f"publishing {name} in"):
                    self._finish(draft)
            except ChangedError:
                draft.forget()
                raise
            finally:
                draft.close()

    def gc(self, name: str | None = None) -> list[str]:
        """Remove versions beyond `keep_versions` and unfinished ones; returns what was removed.

        Interrupted runs begin anew afterwards. What is still open on a removed version raises a
        `StoreError` when it is read, or goes on reading it.
        """
        removed = []
        for artifact in [name] if name else self._begun():
            with self._writing(artifact), self._explained(artifact, "cleaning"):
                self._tidy(artifact)
                removed += self._clean(artifact)
        return removed

    def _finish(self, draft: StoredDraft) -> None:
        draft.check_complete()
        if draft.changed:
            self._publish(draft)
        else:
            self._abandon(draft)
        draft.version = self.current(draft.artifact)

    def _known(self, opened: Kept) -> Kept:
        """The same object as before, with what it has read, while its bookkeeping is untouched."""
        seen = opened.contents.stamp(MANIFEST), opened.contents.stamp(BLOCKS)
        known, version = self._opened.get(opened.address, (None, None))
        if version is None or known != seen:
            self._forget_removed(opened.artifact)
            version = opened
            self._opened[opened.address] = seen, version
        return version

    def _forget_removed(self, artifact: str) -> None:
        """Or who looks on while an artifact is refreshed would keep all that it ever was."""
        for address, (_, version) in list(self._opened.items()):
            if version.artifact == artifact and not version.contents.is_kept():
                self._opened.pop(address, None)

    def _next_number(self, name: str) -> int:
        return max((version.number for version in self.versions(name)), default=0) + 1

    def _surplus(self, name: str) -> list[Kept]:
        """Versions beyond `keep_versions`, oldest first, never the current one.

        Nor one that a current artifact was made from, which it says in its attribute
        `<name>_version`: a pinned curvature multiplies with the rows that it has seen.
        """
        versions = self.versions(name)
        surplus = len(versions) - self.keep_versions
        if surplus <= 0:
            return []
        current = self.current(name)
        try:
            needed = self._made_from(name) | {current.number if current else 0}
        except StoreError:  # a damaged artifact does not say what it was made from: any of them
            return []
        return [each for each in versions if each.number not in needed][:surplus]

    def _made_from(self, name: str) -> set[int]:
        versions = (self.base(other) for other in self._begun())
        return {version.attrs.get(f"{name}_version", 0) for version in versions if version}


def begun_for(layout: Layout, base: StoredVersion | None) -> dict[str, Any]:
    """What a draft is for; one that was begun for another begins anew."""
    from_version = [base.number, base.data_version] if base else None
    return {"layout": layout.fingerprint, "base": from_version}


def refuse_locks(address: str, locks: str, others: str) -> None:
    """A `StoreError` for a way of locking files, where there are none."""
    if locks != "flock":
        raise StoreError(
            f"{address} has no lock files, and locks is {locks!r}; {others}: leave `store.locks` "
            "out"
        )


def is_part(word: str) -> bool:
    """Whether it can be a part of an artifact's name."""
    return _PART.fullmatch(word) is not None and word not in TAKEN


def check_name(name: str) -> None:
    """A `StoreError` for what cannot name an artifact."""
    if not all(map(is_part, name.split("/"))):
        raise StoreError(
            f"{name!r} cannot name an artifact: words, joined by slashes (direct/summary)"
        )


def _readable(version: Kept | None) -> Kept | None:
    """A version whose own bookkeeping can be read; without that nothing of it can be reused."""
    try:
        if version:
            version.check_bookkeeping()
    except UnreachableError:
        raise
    except StoreError:
        return None
    return version
