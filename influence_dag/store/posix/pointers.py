"""Which version is current: a link, and what stands for it where links do not.

`current` is a relative symbolic link. A copy may lack it: what follows links (`cp -rL`, object
stores, shares) leaves a folder in its place, some archives a text file with its target, others
nothing. All of them are read; where a folder or nothing is left, the next refresh puts the link
back. Where a file system has no symbolic links, the text file is what is written.
"""

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

from influence_dag.errors import StoreError
from influence_dag.files import content_of, remove, replace_link, write_atomically
from influence_dag.store.manifests import MANIFEST
from influence_dag.store.posix.folders import version_in

CURRENT = "current"
_NUMBER = re.compile(r"\d{6,}")
_TARGET = re.compile(r"versions[/\\](\d{6,})\s*")
_LONGEST = 100  # bytes of a text file that names a version


def numbered(folder: Path) -> list[Path]:
    """The folders of an artifact's published versions, oldest first."""
    versions = folder / "versions"
    if not versions.is_dir():
        return []
    kept = [path for path in versions.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir()]
    return sorted(kept, key=lambda path: int(path.name))


def is_pointer(current: Path) -> bool:
    """Whether it leads to a version as it should."""
    named = _named(current)
    return named is not None and named.is_dir()


def pointed_to(folder: Path, artifact: str) -> Path | None:
    """The folder of an artifact's current version; None where nothing has been published.

    Without a link that leads anywhere it is the version of which `current` is a copy, else the
    newest that is complete; a warning says so. Raises `StoreError` when there are versions and none
    of them is complete.
    """
    named = _named(folder / CURRENT)
    if named is not None and named.is_dir():
        is_ours = _NUMBER.fullmatch(named.name)  # other programs have links so called
        return named if is_ours else None
    if not (kept := numbered(folder)):
        if (folder / CURRENT).is_dir():
            raise StoreError(
                f"{folder / CURRENT} is a folder and not a link, and {folder / 'versions'} has no "
                "version of which it could be a copy; copy the folder `versions` too, or remove "
                f"{folder} and refresh"
            )
        return None
    if named is None and (found := _copied(folder / CURRENT, kept)):
        return found  # a faithful copy: nothing is in doubt
    return _newest(folder, artifact, kept, named)


def _named(current: Path) -> Path | None:
    """What a link, or a text file in its place, names."""
    try:
        return current.parent / os.readlink(current)
    except FileNotFoundError:
        return None
    except OSError:  # not a link
        pass
    with suppress(OSError, UnicodeDecodeError):
        short = current.is_file() and current.stat().st_size <= _LONGEST
        if short and (target := _TARGET.fullmatch(current.read_text())):
            return current.parent / "versions" / target[1]
    return None


def _copied(current: Path, kept: list[Path]) -> Path | None:
    """The version that has the same manifest as a folder called `current`."""
    manifest = content_of(current / MANIFEST)
    same = (path for path in reversed(kept) if content_of(path / MANIFEST) == manifest)
    return next(same, None) if manifest is not None else None


def _newest(folder: Path, artifact: str, kept: list[Path], named: Path | None) -> Path:
    lost = f"the link {folder / CURRENT} is missing"
    if named is not None:
        lost = f"the link {folder / CURRENT} leads to {named.name}, which is missing"
    elif (folder / CURRENT).exists():
        lost = f"{folder / CURRENT} is no link, and no copy of a version that is kept"
    for path in reversed(kept):
        if version_in(path, artifact).is_complete:
            warnings.warn(
                f"{lost}: {path.name}, the newest complete version, is taken; a refresh restores "
                f"the link, as does `ln -sfn versions/{path.name} {folder / CURRENT}`",
                stacklevel=4,
            )
            return path
    raise StoreError(
        f"{lost}, and none of the versions {', '.join(path.name for path in kept)} is complete; "
        f"copy {folder} again, links and all (`cp -a`, `rsync -a`, `tar`), or remove it and refresh"
    )


def point(folder: Path, version: Path) -> None:
    """Let `current` lead to a version, in one step where it is a link or a file before."""
    current, target = folder / CURRENT, f"versions/{version.name}"
    if current.is_dir() and not current.is_symlink():
        remove([current])
    try:
        replace_link(current, target)
    except OSError:  # no symbolic links here; what else is wrong fails again
        write_atomically(current, target.encode())
