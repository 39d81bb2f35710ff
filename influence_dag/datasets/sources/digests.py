"""Content hashes of files, remembered by size and time of modification."""

import json
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from influence_dag.files import stamp, write_atomically
from influence_dag.fingerprints import KEY_BYTES

SETTLED = 2.0  # seconds: a file may be written twice within one tick of its file system's clock


class FileDigests:
    """`digests[file]` is a file's content hash; a file is read only if it may have changed.

    Without `path`, or where that cannot be written, nothing is remembered: the hash decides, the
    memory only spares reading.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._known = path, {}
        with suppress(OSError, ValueError, TypeError):
            known = dict(json.loads(path.read_text())) if path else {}
            self._known = {name: [size, when, told] for name, (size, when, told) in known.items()}
        self._before = dict(self._known)

    def __getitem__(self, file: Path) -> str:
        seen, name = stamp(file), str(file.resolve())
        known = self._known.get(name)
        if known and seen and known[:2] == list(seen):
            return known[2]
        digest = _content_hash(file)
        self._known.pop(name, None)
        if seen and time.time() - seen[1] / 1e9 > SETTLED and stamp(file) == seen:
            self._known[name] = [*seen, digest]
        return digest

    def save(self) -> None:
        """Write what was learned, where that is possible."""
        if self.path and self._known != self._before:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self._known).encode())


def _content_hash(file: Path) -> str:
    digest = blake2b(digest_size=KEY_BYTES)
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()
