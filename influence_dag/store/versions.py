"""Versioned artifacts in a folder: plan, write, publish at once, keep some old versions.

<root>/<artifact>/current → versions/000007      what readers open (`store/pointers.py`)
<root>/<artifact>/versions/000007/               a Zarr v3 group, never changed again
<root>/<artifact>/versions/.partial-000008/      a version in the making, and beside it
<root>/<artifact>/versions/.partial-000008.journal   what of it can be trusted
<root>/<artifact>/.lock                          held by the one writer
<root>/<artifact>/.refresh.lock                  held by who computes an artifact at once
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from influence_dag.errors import StoreError
from influence_dag.files import explained, remove, stamp, sync
from influence_dag.store.cloning import clone
from influence_dag.store.differences import Difference
from influence_dag.store.drafts import Draft
from influence_dag.store.journal import Journal, finished_chunks
from influence_dag.store.layout import Layout
from influence_dag.store.locks import Locks, locked
from influence_dag.store.manifests import BLOCKS, MANIFEST
from influence_dag.store.partials import JOURNALS, header, published_path
from influence_dag.store.plans import Expected, Plan, make_plan
from influence_dag.store.pointers import CURRENT, is_pointer, numbered, point, pointed_to
from influence_dag.store.published import Version
from influence_dag.store.publishing import finish
from influence_dag.texts import did_you_mean
from influence_dag.unchanged import ChangedError

__all__ = ["ArtifactStore", "Draft", "Plan", "Version"]

_PART = re.compile(r"\w[\w.-]*")  # of an artifact's name
_NO_ARTIFACTS = {"versions", CURRENT}
_DEEPEST = 3  # parts of a name; who opens `/` is not to wait until all of it has been looked at


class ArtifactStore:
    """The artifacts of one study, below one folder; names may have slashes (`direct/influences`).

    A process may be killed at any time: `current` names a complete version, and the next run goes
    on with the chunks that were finished. One writer an artifact at a time; another waits up to
    `lock_timeout` seconds and tells `report` for whom. Readers need no lock.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        keep_versions: int = 5,
        lock_timeout: float = 60.0,
        report: Callable[[str], None] = lambda message: None,
        locks: Locks = "flock",
    ) -> None:
        if keep_versions < 1:
            raise StoreError(f"keep_versions is {keep_versions}; at least the current one is kept")
        self.root = Path(root).absolute()
        self.keep_versions, self.lock_timeout = keep_versions, lock_timeout
        self._opened: dict[Path, tuple[object, Version]] = {}
        self._report = report
        self._locks: Locks = locks

    def names(self) -> list[str]:
        """The artifacts that have a current version, sorted."""
        return [name for name in self._begun() if self.current(name)]

    def unfinished(self) -> dict[str, int]:
        """How many finished chunks interrupted runs have left for the next one, by artifact."""
        left = {
            name: sum(map(finished_chunks, (self._folder(name) / "versions").glob(JOURNALS)))
            for name in self._begun()
        }
        return {name: count for name, count in left.items() if count}

    def _begun(self) -> list[str]:
        """The artifacts that have a version or the beginning of one, sorted.

        Folders that a person, a server or a sync tool has put beside them (`.snapshot`, `@eaDir`,
        `Copy of direct`) are passed over.
        """
        found = []
        for folder, inside, _ in os.walk(self.root):
            relative = Path(folder).relative_to(self.root)
            if not _NO_ARTIFACTS.isdisjoint(inside):
                found.append(relative.as_posix())
            inside[:] = [n for n in inside if _PART.fullmatch(n) and n not in _NO_ARTIFACTS]
            if len(relative.parts) >= _DEEPEST:
                inside.clear()
        return sorted(found)

    def current(self, name: str) -> Version | None:
        """The newest complete version; None before the first.

        Where the link to it is lost, as in a copy of the store, a warning says what is taken.
        """
        path = pointed_to(self._folder(name))
        return self._version(path, name) if path else None

    def restore_pointer(self, name: str) -> None:
        """Make `current` a link again where a copy has left a folder, or nothing."""
        folder = self._folder(name)
        if is_pointer(folder / CURRENT):
            return
        with self._locked(name, ".lock"), explained(folder, f"pointing {name} to its version in"):
            path = pointed_to(folder)
            if path and not is_pointer(folder / CURRENT):
                self._point_current(name, path)

    def base(self, name: str) -> Version | None:
        """The current version as something to start from: None when its bookkeeping is damaged."""
        return _readable(self.current(name))

    def version(self, name: str, number: int | None = None) -> Version:
        """One version by number, by default the current one."""
        if number is None:
            if version := self.current(name):
                return version
            known = self.names()
            raise StoreError(
                f"{self.root} has no {name!r} yet{did_you_mean(name, known)}; it has "
                f"{', '.join(known)}"
            )
        versions = {version.number: version for version in self.versions(name)}
        if number not in versions:
            raise StoreError(f"{name} has no version {number}; kept are {sorted(versions)}")
        return versions[number]

    def versions(self, name: str) -> list[Version]:
        """All kept versions, oldest first."""
        return [self._version(path, name) for path in numbered(self._folder(name))]

    def diff(self, name: str, before: int, after: int | None = None) -> Difference:
        """What changed from one version to another, by default to the current one."""
        return Difference(self.version(name, before), self.version(name, after))

    def plan(self, name: str, layout: Layout, expected: Expected) -> Plan:
        """What would have to be computed; takes no lock and changes nothing."""
        return make_plan(self.base(name), layout, expected)

    @contextmanager
    def new_version(self, name: str, layout: Layout) -> Iterator[Draft]:
        """A draft to write into; published when the block ends, unless nothing changed.

        An exception leaves `current` as it was and keeps what was finished for the next run with
        the same layout, unless code was edited meanwhile: then nobody knows what it is of.
        """
        folder = self._folder(name)
        with self._locked(name, ".lock"):
            with explained(folder, f"preparing a version of {name} in"):
                self._tidy(name)
                draft = self._resume(name, layout) or self._begin(name, layout)
            try:
                yield draft
                draft.close()
                with explained(folder, f"publishing {name} in"):
                    self._publish(draft)
            except ChangedError:
                draft.forget()
                raise
            finally:
                draft.close()

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Keep other processes from working on the same artifact until the block ends.

        For work that is done before there is anything to write; `new_version` has its own lock.
        """
        with self._locked(name, ".refresh.lock"):
            yield

    def gc(self, name: str | None = None) -> list[str]:
        """Remove versions beyond `keep_versions` and unfinished ones; returns what was removed.

        Interrupted runs begin anew afterwards. Datasets that are still open on a removed version
        raise a `StoreError` when they are read.
        """
        removed = []
        for artifact in [name] if name else self._begun():
            folder = self._folder(artifact)
            with self._locked(artifact, ".lock"), explained(folder, "cleaning"):
                self._tidy(artifact)
                paths = [*(folder / "versions").glob(".partial-*"), *self._surplus(artifact)]
                remove(paths)
                removed += [path.relative_to(self.root).as_posix() for path in paths]
        return removed

    def _version(self, path: Path, name: str) -> Version:
        """The same object as before, with what it has read, while its bookkeeping is untouched."""
        seen = stamp(path / MANIFEST), stamp(path / BLOCKS)
        known, version = self._opened.get(path, (None, None))
        if version is None or known != seen:
            version = Version(path, name)
            self._opened[path] = seen, version
        return version

    def _locked(self, name: str, file: str) -> AbstractContextManager[None]:
        return locked(
            self._folder(name) / file,
            timeout=self.lock_timeout,
            report=lambda message: self._report(f"{name}: {message}"),
            locks=self._locks,
        )

    def _folder(self, name: str) -> Path:
        parts = name.split("/")
        if not all(map(_PART.fullmatch, parts)) or not _NO_ARTIFACTS.isdisjoint(parts):
            raise StoreError(
                f"{name!r} cannot name an artifact: words, joined by slashes (direct/summary)"
            )
        return self.root / name

    def _begin(self, name: str, layout: Layout) -> Draft:
        """A fresh clone of the current version under a provisional name."""
        versions = self._folder(name) / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        remove(list(versions.glob(".partial-*")))
        base = self.base(name)
        number = max((version.number for version in self.versions(name)), default=0) + 1
        folder = versions / f".partial-{number:06d}"
        results = clone(base, layout, folder)
        begun_for = header(layout, base) | {"results": results.to_json()}
        journal = Journal.begin(folder.with_name(f"{folder.name}.journal"), begun_for)
        return Draft(name, folder, journal, layout, base)

    def _resume(self, name: str, layout: Layout) -> Draft | None:
        """The unfinished version of an interrupted run, if it was begun for the same."""
        base = self.base(name)
        for path in (self._folder(name) / "versions").glob(JOURNALS):
            journal = Journal.reopen(path)
            if journal is None:
                continue
            if (
                path.with_suffix("").is_dir()
                and journal.header.items() >= header(layout, base).items()
            ):
                return Draft(name, path.with_suffix(""), journal, layout, base)
            journal.close()
        return None

    def _publish(self, draft: Draft) -> None:
        draft.check_complete()
        journal = draft.folder.with_name(f"{draft.folder.name}.journal")
        if draft.changed:
            finish(draft)
            draft.folder.rename(published_path(draft.folder))
            self._point_current(draft.artifact, published_path(draft.folder))
            remove([journal, *self._surplus(draft.artifact)])
        else:
            remove([journal, draft.folder])
        draft.version = self.current(draft.artifact)

    def _point_current(self, name: str, version: Path) -> None:
        folder = self._folder(name)
        sync(version.parent)
        point(folder, version)
        sync(folder)

    def _tidy(self, name: str) -> None:
        """Finish what a kill interrupted between the two renames of publishing; drop leftovers."""
        folder = self._folder(name)
        for journal in (folder / "versions").glob(JOURNALS):
            published = published_path(journal.with_suffix(""))
            if published.is_dir():
                self._point_current(name, published)
                remove([journal])
        remove([*(folder / "versions").glob(".trash-*"), *folder.glob("*current.*.partial")])

    def _surplus(self, name: str) -> list[Path]:
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
        return [v.path for v in versions if v.number not in needed][:surplus]

    def _made_from(self, name: str) -> set[int]:
        versions = (self.base(other) for other in self.names())
        return {version.attrs.get(f"{name}_version", 0) for version in versions if version}


def _readable(version: Version | None) -> Version | None:
    """A version whose own bookkeeping can be read; without that nothing of it can be reused."""
    try:
        if version:
            version.check_bookkeeping()
    except StoreError:
        return None
    return version
