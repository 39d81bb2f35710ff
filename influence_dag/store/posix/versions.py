"""Versioned artifacts in a folder: links, locks of the system, renames.

<root>/<artifact>/current → versions/000007      what readers open (`pointers.py`)
<root>/<artifact>/versions/000007/               a Zarr v3 group, never changed again
<root>/<artifact>/versions/.partial-000008/      a version in the making, and beside it
<root>/<artifact>/versions/.partial-000008.journal   what of it can be trusted
<root>/<artifact>/.lock                          held by the one writer
<root>/<artifact>/.refresh.lock                  held by who computes an artifact at once
"""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Unpack

from influence_dag.errors import StoreError
from influence_dag.files import explained, reached, remove
from influence_dag.store import versioned
from influence_dag.store.cloning import clone
from influence_dag.store.drafts import StoredDraft
from influence_dag.store.layout import Layout
from influence_dag.store.posix.durable import sync
from influence_dag.store.posix.folders import Folder, FolderVersion, version_in
from influence_dag.store.posix.journal import (
    JOURNALS,
    Journal,
    finished_chunks,
    header,
    published_path,
)
from influence_dag.store.posix.locks import Locks, locked
from influence_dag.store.posix.pointers import CURRENT, is_pointer, numbered, point, pointed_to
from influence_dag.store.publishing import finish


class ArtifactStore(versioned.VersionedStore[FolderVersion]):
    """The artifacts of one study, below one folder; names may have slashes (`direct/influences`).

    A process may be killed at any time: `current` names a complete version, and the next run goes
    on with the chunks that were finished. One writer an artifact at a time; another waits up to
    `lock_timeout` seconds and tells `report` for whom. Readers need no lock.
    """

    def __init__(
        self, root: Path | str, *, locks: Locks = "flock", **options: Unpack[versioned.Options]
    ) -> None:
        self.root = Path(root).absolute()
        super().__init__(str(self.root), **options)
        self._locks: Locks = locks

    @property
    def name(self) -> str:
        return self.root.name

    def current(self, name: str) -> FolderVersion | None:
        """The newest complete version; None before the first.

        Where the link to it is lost, as in a copy of the store, a warning says what is taken.
        """
        folder = self._folder(name)
        with reached(folder):
            path = pointed_to(folder, name)
        return self._known(version_in(path, name)) if path else None

    def versions(self, name: str) -> list[FolderVersion]:
        folder = self._folder(name)
        with reached(folder):
            kept = numbered(folder)
        return [self._known(version_in(path, name)) for path in kept]

    def restore_pointer(self, name: str) -> None:
        """Make `current` a link again where a copy has left a folder, or nothing.

        And end what a kill left of publishing: what is current may never be written again.
        """
        folder = self._folder(name)
        with reached(folder):
            if is_pointer(folder / CURRENT) and not self._half_published(name):
                return
        with self._writing(name), explained(folder, f"pointing {name} to its version in"):
            self._tidy(name)
            path = pointed_to(folder, name)
            if path and not is_pointer(folder / CURRENT):
                self._point_current(name, path)

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        return self._locked(name, ".refresh.lock")

    def free_bytes(self) -> int | None:
        there = next(each for each in (self.root, *self.root.parents) if os.path.exists(each))
        return shutil.disk_usage(there).free

    def beside(self, artifact: str) -> list[str]:
        folders = self.root.parent.glob(f"*/{artifact}")
        return [path.relative_to(self.root.parent).parts[0] for path in folders]

    def _begun(self) -> list[str]:
        """The artifacts that have a version or the beginning of one, sorted.

        Folders that a person, a server or a sync tool has put beside them (`.snapshot`, `@eaDir`,
        `Copy of direct`) are passed over, and so are links to others of them; one that was moved
        to another disk is there by a link. Who opens `/` is not to wait until all of it has been
        looked at. Raises `StoreError` for a folder that may not be read: what is in it would be
        missing without a word.
        """
        names, closed, root = [], list[OSError](), self.root.resolve()
        for folder, inside, _ in os.walk(self.root, onerror=closed.append, followlinks=True):
            relative = Path(folder).relative_to(self.root)
            if not versioned.TAKEN.isdisjoint(inside):
                names.append(relative.as_posix())
            inside[:] = [
                each
                for each in inside
                if versioned.is_part(each) and not _is_alias(Path(folder, each), root)
            ]
            if len(relative.parts) >= versioned.DEEPEST:
                inside.clear()
        refused = [each for each in closed if isinstance(each, PermissionError)]
        is_study = any("/" not in name for name in names)  # not `/`, and what else there is in it
        if refused and (is_study or Path(refused[0].filename) == self.root):
            raise StoreError(
                f"{refused[0].filename} may not be read: {refused[0].strerror}; ask its owner"
            )
        return sorted(names)

    def _left(self, name: str) -> int:
        return sum(map(finished_chunks, (self._folder(name) / "versions").glob(JOURNALS)))

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return self._locked(name, ".lock")

    def _locked(self, name: str, file: str) -> AbstractContextManager[None]:
        return locked(
            self._folder(name) / file,
            timeout=self.lock_timeout,
            report=lambda message: self._report(f"{name}: {message}"),
            locks=self._locks,
        )

    def _explained(self, name: str, doing: str) -> AbstractContextManager[None]:
        return explained(self._folder(name), doing)

    def _folder(self, name: str) -> Path:
        versioned.check_name(name)
        return self.root / name

    def _begin(self, name: str, layout: Layout) -> StoredDraft:
        versions = self._folder(name) / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        remove(list(versions.glob(".partial-*")))
        base = self.base(name)
        contents = Folder(versions / f".partial-{self._next_number(name):06d}")
        contents.path.mkdir()
        results = clone(base, layout, contents)
        begun_for = header(layout, base) | {"results": results.to_json()}
        journal = Journal.begin(_journal_of(contents), begun_for)
        return StoredDraft(name, contents, journal, layout, base)

    def _resume(self, name: str, layout: Layout) -> StoredDraft | None:
        base = self.base(name)
        for path in (self._folder(name) / "versions").glob(JOURNALS):
            journal = Journal.reopen(path)
            if journal is None:
                continue
            contents = Folder(path.with_suffix(""))
            begun_for = header(layout, base)
            if contents.path.is_dir() and journal.header.items() >= begun_for.items():
                return StoredDraft(name, contents, journal, layout, base)
            journal.close()
        return None

    def _publish(self, draft: StoredDraft) -> None:
        folder = _folder_of(draft)
        finish(draft)
        folder.path.rename(published_path(folder.path))
        self._point_current(draft.artifact, published_path(folder.path))
        surplus = [version.path for version in self._surplus(draft.artifact)]
        remove([_journal_of(folder), *surplus])

    def _abandon(self, draft: StoredDraft) -> None:
        folder = _folder_of(draft)
        remove([_journal_of(folder), folder.path])

    def _clean(self, name: str) -> list[str]:
        unfinished = (self._folder(name) / "versions").glob(".partial-*")
        paths = [*unfinished, *(version.path for version in self._surplus(name))]
        remove(paths)
        return [path.relative_to(self.root).as_posix() for path in paths]

    def _point_current(self, name: str, version: Path) -> None:
        folder = self._folder(name)
        sync(version.parent)
        point(folder, version)
        sync(folder)

    def _half_published(self, name: str) -> list[Path]:
        """Journals of versions that have their name already."""
        journals = (self._folder(name) / "versions").glob(JOURNALS)
        return [path for path in journals if published_path(path.with_suffix("")).is_dir()]

    def _tidy(self, name: str) -> None:
        """Finish what a kill interrupted between the two renames of publishing; drop leftovers."""
        folder = self._folder(name)
        for journal in self._half_published(name):
            self._point_current(name, published_path(journal.with_suffix("")))
            remove([journal])
        remove([*(folder / "versions").glob(".trash-*"), *folder.glob("*current.*.partial")])


def _is_alias(path: Path, root: Path) -> bool:
    """Whether it is a link to something in a store, or around it, that is there without it."""
    there = path.resolve() if path.is_symlink() else None
    return there is not None and (there.is_relative_to(root) or root.is_relative_to(there))


def _folder_of(draft: StoredDraft) -> Folder:
    assert isinstance(draft.contents, Folder)
    return draft.contents


def _journal_of(contents: Folder) -> Path:
    """The file beside an unfinished version."""
    return contents.path.with_name(f"{contents.path.name}.journal")
