"""One writer at a time: the system's locks and, where a file system has none, lock files.

`flock` belongs to an open file: it excludes threads as well as processes and is released by the
system when its holder dies, however it dies. A lock file (`.lock.held` beside `.lock`) is there
while somebody holds it, and stays when its holder is killed; so it says which process of which
machine that is, and one that has died on this machine is taken over.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakSet

from influence_dag.errors import StoreError
from influence_dag.files import content_of, explained
from influence_dag.store.posix.holders import is_dead, named, this_process

Locks = Literal["flock", "files"]
Report = Callable[[str], None]

_POLL_SECONDS = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
PATIENCE = "Try again when it is done, or raise `store.lock_timeout`"


class NoLocksError(StoreError):
    """The file system does not know locks."""


@contextmanager
def locked(
    path: Path,
    *,
    timeout: float,
    report: Report = lambda message: None,
    locks: Locks = "flock",
    told: str | None = None,
    cure: str = PATIENCE,
) -> Iterator[None]:
    """Hold an exclusive lock on a file; after `timeout` seconds a `StoreError` names the holder.

    `told` is what is locked, as sentences call it; by default the folder. `cure` ends that
    sentence.

    Who has to wait says so to `report` at once, with the holder's name. With `locks="files"` a
    file is held as well, which whoever uses `flock` looks at too. The file itself stays.
    """
    with explained(path.parent, "writing to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    _held.add(opened)
    lock, told = _Lock(path, opened, locks), told or str(path.parent)
    try:
        acquire(lock, told, timeout=timeout, every=_POLL_SECONDS, report=report, cure=cure)
        yield
    finally:
        try:
            lock.release()
        finally:  # or a process that outlives an interrupt in its course would go on holding it
            lock.release()


@contextmanager
def locked_anywhere(path: Path, *, timeout: float, told: str, cure: str) -> Iterator[None]:
    """As `locked`, where no setting says how: by a file where the file system has no locks."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(path, timeout=timeout, told=told, cure=cure))
        except NoLocksError:
            held.enter_context(locked(path, timeout=timeout, told=told, cure=cure, locks="files"))
        yield


class _Lock:
    """A lock that is tried for, held and let go."""

    def __init__(self, path: Path, opened: FileIO, locks: Locks):
        self.path, self.opened, self.locks = path, opened, locks
        self.file = path.with_name(f"{path.name}.held")
        self.holder = this_process()
        self.has_file = False

    def is_taken(self) -> bool:
        with explained(self.path, "locking"):
            return self._is_taken()

    def _is_taken(self) -> bool:
        if not self._flocked():
            return False
        self.has_file = self.locks == "files" and self._made()
        if self.has_file or (self.locks == "flock" and not self._is_held_by_file()):
            os.ftruncate(self.opened.fileno(), 0)
            os.pwrite(self.opened.fileno(), json.dumps(self.holder).encode(), 0)
            return True
        with suppress(OSError):
            fcntl.flock(self.opened.fileno(), fcntl.LOCK_UN)
        return False

    def _made(self) -> bool:
        made = _create(self.file, self.holder)
        return made or (_removed_stale(self.file) and _create(self.file, self.holder))

    def _is_held_by_file(self) -> bool:
        return self.file.exists() and not _removed_stale(self.file)

    def _flocked(self) -> bool:
        try:
            fcntl.flock(self.opened.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if self.locks == "flock" or error.errno not in _NO_LOCKS:
                raise _unlockable(self.path, error) from error
        return True

    def named(self) -> str:
        """Who holds it, as it wrote into the files; how to end what may be over."""
        if self.file.exists():  # of one that was killed while it made it, nobody is named in it
            told = named(_read(self.file)) or "a process that has not noted its name"
            return f"{told}; if that is over, remove {self.file}"
        return named(_read(self.path)) or "another process"

    def release(self) -> None:
        """Let it go, if that has not been done."""
        if self.opened.closed:  # also of a forked child
            return
        if self.has_file:
            self.file.unlink(missing_ok=True)
        self.opened.close()
        _held.discard(self.opened)


_held: WeakSet[FileIO] = WeakSet()  # what an interrupt cuts off is closed with its frames


def _close_held() -> None:
    """A child that was forked while its parent held a lock would go on holding it after it."""
    for opened in list(_held):
        opened.close()


os.register_at_fork(after_in_child=_close_held)


class Lock(Protocol):
    """What is tried for again and again."""

    def is_taken(self) -> bool:
        """Try for it without waiting."""
        ...

    def named(self) -> str:
        """Who holds it."""
        ...


def acquire(
    lock: Lock, told: str, *, timeout: float, every: float, report: Report, cure: str
) -> None:
    """Try for it every so many seconds; after `timeout` a `StoreError` names the holder.

    `told` is what is locked, `cure` what to do.
    """
    deadline, tries = time.monotonic() + timeout, 0
    while not lock.is_taken():
        if time.monotonic() >= deadline:
            raise StoreError(
                f"{told} is being written by {lock.named()}; waited {timeout:g} s. {cure}"
            )
        time.sleep(min(every, timeout))
        tries += 1
        if tries == 1:  # by now a holder that has just come has written its name
            report(f"waiting for {lock.named()}, which writes {told}")


def _unlockable(path: Path, error: OSError) -> StoreError:
    why, cure = error.strerror or str(error), ""
    kind = NoLocksError if error.errno in _NO_LOCKS else StoreError
    if kind is NoLocksError:
        why = f"the file system has no locks ({why}), without which two runs would mix their files"
        cure = "set `store.locks: files`, for all who write here, or "
    return kind(
        f"locking {path} failed: {why}; {cure}give `store.path` a folder on a local disk and copy "
        "the results from there, or mount this one with locks (NFS: with lockd, Lustre: with -o "
        "flock)"
    )


def _create(file: Path, holder: dict[str, Any]) -> bool:
    """Whether the lock file is ours: made by one process, whoever else tries at once."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, json.dumps(holder).encode())
        os.fsync(descriptor)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _removed_stale(file: Path) -> bool:
    """Remove the lock file of a process of this machine that has died; whether it was one.

    Whoever removes it holds a second file meanwhile and looks again: else two could see the dead
    one's, and the later one remove what the earlier one has made.
    """
    guard = file.with_name(f"{file.name}.removing")
    if not is_dead(_read(file)) or not _create(guard, this_process()):
        return False
    try:
        if dead := is_dead(_read(file)):
            file.unlink(missing_ok=True)
        return dead
    finally:
        guard.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        return dict(json.loads(content_of(file) or b"{}"))
    return {}
