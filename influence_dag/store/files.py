"""The file system's part: locks, hard links, durable writes. Nothing here knows about arrays."""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from influence_dag.errors import StoreError

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}
_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a file grew above the limit of its file system or process; raise the limit",
    errno.EROFS: "the store is read-only; give `store.path` a folder that can be written",
    errno.EACCES: "no permission; give `store.path` a folder that can be written",
    errno.EPERM: "no permission; give `store.path` a folder that can be written",
}


@contextmanager
def explained(path: Path, doing: str, *, size: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors into a `StoreError` that says what to do.

    `size` is how many bytes are being written, at most; a full disk is then told in numbers.
    """
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, f"{error.strerror or error}")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause += _space(path, size)
        raise StoreError(
            f"{doing} {path} failed: {cause}. The current version is untouched and the next run "
            f"resumes what was finished"
        ) from error


def _space(path: Path, size: int | None) -> str:
    """` (4,096 bytes free, 65,536 to write)`, as far as it is known."""
    found = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    free = f"{shutil.disk_usage(found).free:,} bytes free" if found else ""
    wanted = f"{size:,} to write" if size is not None else ""
    return f" ({', '.join(filter(None, (free, wanted)))})"


@contextmanager
def locked(
    path: Path, *, timeout: float, report: Callable[[str], None] = lambda message: None
) -> Iterator[None]:
    """Hold an exclusive lock on a file; after `timeout` seconds a `StoreError` names the holder.

    Who has to wait says so to `report` at once, with the holder's name. `flock` belongs to the open
    file, so it excludes threads as well as processes and is released by the system when its holder
    dies, however it dies. The file itself stays.
    """
    with explained(path.parent, "writing to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(descriptor)
    try:
        _acquire(descriptor, path, timeout, report)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        with explained(path, "writing to"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # in a forked child it is closed
            _held.remove(descriptor)
            os.close(descriptor)


_held: set[int] = set()


def _close_held() -> None:
    """A child that was forked while its parent held a lock would go on holding it after it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_held)

_POLL_SECONDS = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


def _acquire(descriptor: int, path: Path, timeout: float, report: Callable[[str], None]) -> None:
    deadline, tries = time.monotonic() + timeout, 0
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{path.parent} is being written by {_holder(path)}; waited {timeout:g} s. Try "
                    f"again when it is done, or raise `store.lock_timeout`"
                ) from None
        except OSError as error:
            raise _unlockable(path, error) from error
        time.sleep(min(_POLL_SECONDS, timeout))
        tries += 1
        if tries == 1:  # by now a holder that has just come has written its name
            report(f"waiting for {_holder(path)}, which writes {path.parent}")


def _unlockable(path: Path, error: OSError) -> StoreError:
    why = error.strerror or str(error)
    if error.errno in _NO_LOCKS:
        why = f"the file system has no locks ({why}), without which two runs would mix their files"
    return StoreError(
        f"locking {path} failed: {why}; give `store.path` a folder on a local disk and copy the "
        "results from there, or mount this one with locks (NFS: with lockd, Lustre: with -o flock)"
    )


def _holder(path: Path) -> str:
    """Who holds a lock, as it wrote into the file."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


def boot_id() -> str:
    """Names the running kernel: what a file holds that was never fsynced is trusted only under it.

    Where the system offers none, a new one every time: then nothing is trusted.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Hard link where the file system can, else a copy with the same time of modification."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole; a reader sees the old or the new content."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere in one step."""
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}.partial")
    temporary.symlink_to(target)
    temporary.replace(link)


def files_below(folder: Path) -> Iterator[str]:
    """Every file in a folder and in those inside it."""
    for parent, _, names in os.walk(folder):
        yield from (f"{parent}/{name}" for name in names)


def make_durable(folder: Path) -> None:
    """Have the disk itself hold a folder's own files and all folder entries.

    Files with a second hard link belong to an older version, which was durable before.
    """
    paths = []
    for parent, _, names in os.walk(folder):
        paths += [path for name in names if os.stat(path := f"{parent}/{name}").st_nlink == 1]
        paths.append(parent)
    with ThreadPoolExecutor(8) as pool:  # fsync waits for the disk, which takes several at once
        list(pool.map(sync, paths))


def sync(path: Path | str) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders; a folder vanishes under its name at once, then its content."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            trash = path.with_name(f".trash-{uuid.uuid4().hex}")
            path.rename(trash)
            shutil.rmtree(trash)
        else:
            path.unlink(missing_ok=True)


def stamp(path: Path | str) -> tuple[int, int] | None:
    """Size and time of modification (ns), which change when a file is rewritten; None = gone."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns
