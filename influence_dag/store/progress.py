"""What of an unfinished version can be trusted after an interruption.

Entries, in order. A chunk is marked `dirty` before anything is written into it and `done`, with its
key, afterwards: so at any moment no key is claimed for bytes that are not there. Where the entries
are kept is a backend's business; they have to be as durable as the chunks that they vouch for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from influence_dag.store.layout import ChunkIndex


class Progress(ABC):
    """The entries of one unfinished version; safe to add to from several threads.

    `header` says what it was begun for, `recovered` what an interrupted run left.
    """

    header: dict[str, Any]
    recovered: list[dict[str, Any]]

    def dirty(self, variable: str, chunks: Iterable[ChunkIndex]) -> None:
        self.record({"dirty": variable, "chunks": list(chunks)})

    def done(self, variable: str, keys: Mapping[ChunkIndex, bytes]) -> None:
        digits = [key.hex() for key in keys.values()]
        self.record({"done": variable, "chunks": list(keys), "keys": digits})

    def note(self, **entry: Any) -> None:
        """Anything else worth knowing after a kill."""
        self.record(entry)

    @abstractmethod
    def record(self, entry: dict[str, Any]) -> None:
        """Add an entry; when this returns it is there for the next run."""

    @abstractmethod
    def close(self) -> None:
        """No more entries come from this run."""

    @abstractmethod
    def discard(self) -> None:
        """Vouch for nothing: the next run begins anew."""


def finished_chunks(entries: Iterable[Mapping[str, Any]]) -> int:
    """How many chunks the entries of an interrupted run vouch for."""
    done: set[tuple[str, ChunkIndex]] = set()
    for entry in entries:
        name = str(entry.get("done") or entry.get("dirty"))
        chunks = {(name, tuple(index)) for index in entry.get("chunks", [])}
        if "done" in entry:
            done |= chunks
        else:
            done -= chunks
    return len(done)
