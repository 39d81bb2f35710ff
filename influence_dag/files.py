"""The file system's part: hard links, whole writes. Nothing here knows about arrays."""

import errno
import os
import shutil
import stat
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from influence_dag.errors import StoreError, UnreachableError, interrupt_behind

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a file grew above the limit of its file system or process; raise the limit",
    errno.ENOTDIR: "a part of this path is a file; give `store.path` a folder",
    errno.ENAMETOOLONG: "the path is too long for the file system; give `store.path` a shorter one",
    errno.EIO: "the disk or its connection failed; look at the system's log",
    errno.ESTALE: "the network's file system has lost the folder; mount it again",
    errno.EROFS: "the store is read-only; give `store.path` a folder that can be written",
    errno.EACCES: "no permission; give `store.path` a folder that can be written",
    errno.EPERM: "no permission; give `store.path` a folder that can be written",
}

_MOUNT = "see that its disk or server answers, and mount it again"
_FEWER = "close some, or raise the limit (ulimit -n)"
_OUTAGES = {  # of the way to a file, and no word about the file
    errno.EACCES: "ask its owner",
    errno.EPERM: "ask its owner",
    errno.EMFILE: _FEWER,
    errno.ENFILE: _FEWER,
    errno.ENOMEM: "free some memory",
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ETIMEDOUT: _MOUNT,
    errno.EHOSTDOWN: _MOUNT,
}


@contextmanager
def explained(path: Path, doing: str, *, size: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors into a `StoreError` that says what to do.

    `size` is how many bytes are being written, at most; a full disk is then told in numbers. What
    fails in the course of an interrupt (a second `close` of the same file) remains an interrupt.
    """
    try:
        yield
    except OSError as error:
        if interrupt := interrupt_behind(error):
            raise interrupt from None
        cause = _CAUSES.get(error.errno or 0, f"{error.strerror or error}")
        if error.errno == errno.ENOSPC and not _free_inodes(path):
            cause = "the file system has no room for one more file (no inodes left); remove files"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause += _space(path, size)
        elif error.errno == errno.EEXIST and (nowhere := _dangling(path)):
            cause = (
                f"{nowhere} is a link to {os.readlink(nowhere)}, where no folder is; mount or make "
                "it, or give `store.path` another"
            )
        elif error.errno == errno.EISDIR and error.filename:
            there = error.filename2 or error.filename  # what was to be replaced by the first
            cause = f"{there} is a folder, where a file is to be; move it away"
        elif error.errno == errno.EEXIST and error.filename and not error.filename2:
            cause = f"{error.filename} is a file, where a folder is to be; move it away"
        raise StoreError(
            f"{doing} {path} failed: {cause}. The current version is untouched and the next run "
            f"resumes what was finished"
        ) from error


def _dangling(path: Path) -> Path | None:
    """The part of a path that is a link to nothing: a disk that is not mounted."""
    return next(
        (each for each in (path, *path.parents) if each.is_symlink() and not each.exists()), None
    )


def _above(path: Path) -> Path | None:
    """The nearest folder that is there."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), None)


def _free_inodes(path: Path) -> int:
    """How many files a file system has room for; 1 where it does not count them."""
    folder = _above(path)
    counted = os.statvfs(folder) if folder else None
    return counted.f_favail if counted and counted.f_files else 1


def _space(path: Path, size: int | None) -> str:
    """` (4,096 bytes free, 65,536 to write)`, as far as it is known."""
    folder = _above(path)
    free = f"{shutil.disk_usage(folder).free:,} bytes free" if folder else ""
    wanted = f"{size:,} to write" if size is not None else ""
    return f" ({', '.join(filter(None, (free, wanted)))})"


def boot_id() -> str:
    """Names the running kernel: what a file holds that was never fsynced is trusted only under it.

    Where the system offers none, a new one every time: then nothing is trusted.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Hard link where the file system can, else a copy with the same time of modification.

    File systems refuse links in many words; what else is wrong, copying says too.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        if not os.path.samefile(source, target):  # the same: a server did it, and was asked again
            raise
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def reached(path: Path | str) -> Iterator[None]:
    """Turn what keeps a reader from looking into a folder into an `UnreachableError`."""
    try:
        yield
    except OSError as error:
        raise _unreachable(error.filename or path, error) from error


def _unreachable(path: Path | str, error: OSError) -> UnreachableError:
    cure = _OUTAGES.get(error.errno or 0, "look at the system's log")
    return UnreachableError(f"{path} cannot be read: {error.strerror or error}; {cure}")


def _nothing(path: Path | str, error: OSError) -> None:
    """Nothing is there, or rot; an `UnreachableError` where that is not known."""
    if error.errno in _OUTAGES:
        raise _unreachable(path, error) from error


def content_of(path: Path | str) -> bytes | None:
    """What a file holds; None without one, and for a folder, a pipe (which never ends), rot.

    Raises `UnreachableError` where nobody knows: it may not be read, no more files can be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is opened at once
    except OSError as error:
        return _nothing(path, error)
    try:
        return _read_all(descriptor)
    except OSError as error:
        return _nothing(path, error)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes | None:
    """What an open file holds, in one call where the system gives all of it; None if it is none."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    content = os.read(descriptor, status.st_size + 1)
    if len(content) == status.st_size:
        return content
    pieces = [content]  # above 2 GiB, or of a size that the system does not tell
    while pieces[-1]:
        pieces.append(os.read(descriptor, 1 << 30))
    return b"".join(pieces)


def write_atomically(path: Path | str, content: bytes) -> None:
    """Replace a file as a whole; a reader sees the old or the new content, and no rest is left."""
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with open(temporary, "xb", buffering=0) as file:
            rest = memoryview(content)
            while rest:  # a call writes 2 GiB at most
                rest = rest[file.write(rest) :]
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere in one step."""
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}.partial")
    temporary.symlink_to(target)
    temporary.replace(link)


def files_below(folder: Path | str) -> Iterator[str]:
    """Every file in a folder and in those inside it."""
    for parent, _, names in os.walk(folder):
        yield from (f"{parent}/{name}" for name in names)


def files_behind(folder: Path | str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Every file in a folder and in those inside it or linked there, a link to nothing too.

    A link to one of the folders `above` it, whose files are theirs, is not followed.
    """
    real = os.path.realpath(folder)
    for entry in () if real in above else os.scandir(folder):
        if entry.is_dir():
            yield from files_behind(entry.path, (*above, real))
        else:
            yield entry.path


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders; a folder vanishes under its name at once, then its content.

    A `RuntimeWarning` for content that stays, which is taken away the next time: on a network's
    file system what a reader has open cannot be removed, and nothing depends on it any more.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            trash = path.with_name(f".trash-{uuid.uuid4().hex}")
            path.rename(trash)
            try:
                shutil.rmtree(trash)
            except OSError as error:
                said = f"{trash} could not be removed ({error}); the next run tries again"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
        else:
            path.unlink(missing_ok=True)


def stamp(path: Path | str) -> tuple[int, int] | None:
    """Size and time of modification (ns), which change when a file is rewritten; None = gone.

    Raises `UnreachableError` as `content_of` does.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return _nothing(path, error)
    return status.st_size, status.st_mtime_ns
