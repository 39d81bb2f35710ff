"""One writer at a time in an object store: an object that is there while somebody writes.

It is made by one process, whoever else tries at once, says who that is, and is written again every
half minute. A holder that has died on this machine, or of which nothing was heard for three
minutes, is taken over from. That keeps two from doing the same work; that nothing is lost if they
do is not its business: a version is published under a number that is given once.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from influence_dag.errors import StoreError
from influence_dag.store.posix.holders import is_dead, named, this_process
from influence_dag.store.posix.locks import PATIENCE, Report, acquire
from influence_dag.store.threads import repeated

RENEWED = 30.0  # seconds
FORGOTTEN = 180.0
_POLL_SECONDS = 0.25
_CURE = f"{PATIENCE}; one that was killed elsewhere is taken over from after {FORGOTTEN:g} s"


@contextmanager
def leased(files: Any, path: str, *, told: str, timeout: float, report: Report) -> Iterator[None]:
    """Hold the object; after `timeout` seconds of waiting a `StoreError` names the holder."""
    lease = _Lease(files, path, told)
    acquire(lease, told, timeout=timeout, every=_POLL_SECONDS, report=report, cure=_CURE)
    try:
        with repeated(lease.renew, RENEWED):
            yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, files: Any, path: str, told: str) -> None:
        self.files, self.path, self.told, self.mine = files, path, told, this_process()
        self.tag: str | None = None  # of what we have written
        self._seen: tuple[str | None, float] = (None, 0.0)
        self.holder: dict[str, Any] = {}

    def is_taken(self) -> bool:
        try:
            return self._is_taken()
        except Exception as error:  # of the library's and of its own libraries'
            raise StoreError(
                f"locking {self.told} failed ({type(error).__name__}: {error!s:.300}); name a "
                "bucket that exists and may be written, with its credentials and endpoint in the "
                "environment (AWS_…)"
            ) from error

    def _is_taken(self) -> bool:
        try:
            self.files.pipe_file(self.path, self._content(), mode="create")
        except FileExistsError:
            return self._is_over() and self._written_over(self._seen[0])
        self.tag = self._tag()
        return True

    def _is_over(self) -> bool:
        """Whether the holder is no more, as far as can be seen from here."""
        try:
            tag, content = self._tag(), self.files.cat_file(self.path)
        except FileNotFoundError:
            return False  # let go of meanwhile: tried for again
        with suppress(ValueError):
            self.holder = json.loads(content)
        now = time.monotonic()
        if tag != self._seen[0]:
            self._seen = tag, now
        return is_dead(self.holder) or now - self._seen[1] > FORGOTTEN

    def _written_over(self, tag: str | None) -> bool:
        """Put ours where that one is, if it still is."""
        try:
            self.files.pipe_file(self.path, self._content(), IfMatch=tag)
        except (OSError, ValueError):
            return False
        self.tag = self._tag()
        return True

    def renew(self) -> None:
        with suppress(Exception):  # what cannot be renewed is taken over, and told then
            self._written_over(self.tag)

    def release(self) -> None:
        if self.mine["pid"] != os.getpid():  # a forked child: its parent goes on writing
            return
        with suppress(Exception):  # what cannot be removed is taken over from
            if json.loads(self.files.cat_file(self.path)).get("token") == self.mine["token"]:
                self.files.rm_file(self.path)

    def _content(self) -> bytes:
        return json.dumps(self.mine | {"renewed": time.time()}).encode()

    def _tag(self) -> str:
        return str(self.files.info(self.path)["ETag"])

    def named(self) -> str:
        return named(self.holder) or "another process"
