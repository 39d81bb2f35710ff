"""Files that the disk itself holds, not only the system's memory."""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from influence_dag.store.threads import each_by_threads

_SLOW = 2e-4  # seconds; a thread costs as much
_AT_ONCE = 8  # which a disk takes together
_NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def make_durable(folder: Path) -> None:
    """Have the disk itself hold a folder's own files and all folder entries.

    Files with a second hard link belong to an older version, which was durable before.
    """
    paths = []
    for parent, _, names in os.walk(folder):
        paths += [path for name in names if os.stat(path := f"{parent}/{name}").st_nlink == 1]
        paths.append(parent)
    waiting = iter(paths)
    if any(_took(sync, path) > _SLOW for path in waiting):
        each_by_threads(sync, waiting, _AT_ONCE)


def _took(act: Callable[[Path | str], None], path: Path | str) -> float:
    """Seconds that it takes."""
    before = time.perf_counter()
    act(path)
    return time.perf_counter() - before


def sync(path: Path | str) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems put folders on the disk by themselves
        if error.errno not in _NO_FOLDERS or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)
