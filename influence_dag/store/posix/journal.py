"""The journal beside an unfinished version: what of it can be trusted after a kill.

JSON lines, each with its checksum. The first one, the header, says what the version was begun for;
the others are the entries of `store/progress.py`. Nothing is fsynced: the header names the running
kernel, whose page cache survives the process, and another kernel discards the journal.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from influence_dag.files import boot_id, write_atomically
from influence_dag.store.layout import Layout
from influence_dag.store.manifests import sealed, unsealed
from influence_dag.store.progress import Progress
from influence_dag.store.progress import finished_chunks as count_finished
from influence_dag.store.published import StoredVersion
from influence_dag.store.versioned import begun_for

JOURNALS = ".partial-*.journal"


def header(layout: Layout, base: StoredVersion | None) -> dict[str, object]:
    """What a journal begins with: a run with another one begins anew."""
    return {"format": 2, **begun_for(layout, base), "boot": boot_id()}


def published_path(partial: Path) -> Path:
    """The folder that an unfinished version will be."""
    return partial.with_name(partial.name.removeprefix(".partial-"))


class Journal(Progress):
    """A file that is only appended to; safe to write to from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, *self.recovered = _read_entries(path)
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    @classmethod
    def begin(cls, path: Path, header: Mapping[str, Any]) -> "Journal":
        """A new journal with nothing but its header, there at once or not at all."""
        write_atomically(path, sealed(header))
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> "Journal | None":
        """The journal of an interrupted run; None without a readable one."""
        return cls(path) if _read_entries(path) else None

    def close(self) -> None:
        os.close(self._descriptor)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def record(self, entry: dict[str, Any]) -> None:
        # The newline comes first: it ends whatever a kill or a full disk left of the line before,
        # which is then skipped as unreadable, while this one stands.
        content = b"\n" + sealed(entry)
        with self._lock:
            while content:  # a disk that fills up takes a part; the next attempt raises
                content = content[os.write(self._descriptor, content) :]


def finished_chunks(path: Path) -> int:
    """How many chunks the journal of an interrupted run vouches for."""
    return count_finished(_read_entries(path)[1:])


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in filter(None, lines):
        with suppress(ValueError):
            entries.append(unsealed(line))
    return entries
