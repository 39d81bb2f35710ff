"""One writer at a time in an object store: an object that is there while somebody writes.

It is made by one process, whoever else tries at once, says who that is, and is written again every
half minute. A holder that has died on this machine, or of which nothing was heard for three
minutes, is taken over from. That keeps two from doing the same work; that nothing is lost if they
do is not its business: a version is published under a number that is given once.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from influence_dag.errors import StoreError
from influence_dag.store.posix.locks import Report, is_dead, this_process
from influence_dag.store.threads import repeated

RENEWED = 30.0  # seconds
FORGOTTEN = 180.0
_POLL_SECONDS = 0.25


@contextmanager
def leased(files: Any, path: str, *, told: str, timeout: float, report: Report) -> Iterator[None]:
    """Hold the object; after `timeout` seconds of waiting a `StoreError` names the holder."""
    lease = _Lease(files, path)
    _acquire(lease, told, timeout, report)
    try:
        with repeated(lease.renew, RENEWED):
            yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, files: Any, path: str) -> None:
        self.files, self.path, self.mine = files, path, this_process()
        self.tag: str | None = None  # of what we have written
        self._seen: tuple[str | None, float] = (None, 0.0)
        self.holder: dict[str, Any] = {}

    def is_taken(self) -> bool:
        """Try for it without waiting."""
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
        with suppress(FileNotFoundError):
            if json.loads(self.files.cat_file(self.path)).get("token") == self.mine["token"]:
                self.files.rm_file(self.path)

    def _content(self) -> bytes:
        return json.dumps(self.mine | {"renewed": time.time()}).encode()

    def _tag(self) -> str:
        return str(self.files.info(self.path)["ETag"])

    @property
    def named(self) -> str:
        if "pid" not in self.holder:
            return "another process"
        return "process {pid} on {host} (since {since})".format_map(self.holder)


def _taken(lease: _Lease, told: str) -> bool:
    try:
        return lease.is_taken()
    except Exception as error:  # of the library's and of its own libraries'
        raise StoreError(
            f"locking {told} failed ({type(error).__name__}: {error!s:.300}); name a bucket that "
            "exists and may be written, with its credentials and endpoint in the environment "
            "(AWS_…)"
        ) from error


def _acquire(lease: _Lease, told: str, timeout: float, report: Report) -> None:
    deadline, reported = time.monotonic() + timeout, False
    while not _taken(lease, told):
        if time.monotonic() >= deadline:
            raise StoreError(
                f"{told} is being written by {lease.named}; waited {timeout:g} s. Try again when "
                "it is done, or raise `store.lock_timeout`; one that was killed elsewhere is taken "
                f"over from after {FORGOTTEN:g} s"
            )
        if not reported:
            report(f"waiting for {lease.named}, which writes {told}")
            reported = True
        time.sleep(min(_POLL_SECONDS, timeout))
