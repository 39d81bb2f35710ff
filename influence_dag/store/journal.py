"""The journal beside an unfinished version: what of it can be trusted after a kill.

JSON lines. The first one, the header, says what the version was begun for; then a chunk is marked
`dirty` before anything is written into it and `done`, with its key, afterwards. So at any moment
the journal claims no key for bytes that are not there. Nothing is fsynced: the header names the
running kernel, whose page cache survives the process, and another kernel discards the journal.
"""

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from influence_dag.files import write_atomically
from influence_dag.store.layout import ChunkIndex


class Journal:
    """Append-only; safe to write to from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, *self.recovered = _read_entries(path)
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    @classmethod
    def begin(cls, path: Path, header: Mapping[str, Any]) -> "Journal":
        """A new journal with nothing but its header, there at once or not at all."""
        write_atomically(path, json.dumps(header).encode())
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> "Journal | None":
        """The journal of an interrupted run; None without a readable one."""
        return cls(path) if _read_entries(path) else None

    def dirty(self, variable: str, chunks: Iterable[ChunkIndex]) -> None:
        self._record({"dirty": variable, "chunks": list(chunks)})

    def done(self, variable: str, keys: Mapping[ChunkIndex, bytes]) -> None:
        digits = [key.hex() for key in keys.values()]
        self._record({"done": variable, "chunks": list(keys), "keys": digits})

    def note(self, **entry: Any) -> None:
        """Anything else worth knowing after a kill."""
        self._record(entry)

    def close(self) -> None:
        os.close(self._descriptor)

    def _record(self, entry: dict[str, Any]) -> None:
        # The newline comes first: it ends whatever a kill or a full disk left of the line before,
        # which is then skipped as unreadable, while this one stands.
        content = b"\n" + json.dumps(entry).encode()
        with self._lock:
            while content:  # a disk that fills up takes a part; the next attempt raises
                content = content[os.write(self._descriptor, content) :]


def finished_chunks(path: Path) -> int:
    """How many chunks the journal of an interrupted run vouches for."""
    done: set[tuple[str, ChunkIndex]] = set()
    for entry in _read_entries(path)[1:]:
        name = str(entry.get("done") or entry.get("dirty"))
        chunks = {(name, tuple(index)) for index in entry.get("chunks", [])}
        done = done | chunks if "done" in entry else done - chunks
    return len(done)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in filter(None, lines):
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
