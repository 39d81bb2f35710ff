"""The files of a version in a folder: hard links, stamps, durable writes."""

import os
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from influence_dag import files
from influence_dag.store.contents import Contents, Reader, Stamp
from influence_dag.store.posix.durable import make_durable
from influence_dag.store.published import StoredVersion


@dataclass(frozen=True)
class Folder:
    """The `Contents` of a version, finished or not, as files below a folder."""

    path: Path
    address: str = field(init=False)
    _arrays: set[str] = field(default_factory=set, init=False, compare=False, repr=False)
    _taken: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", str(self.path))

    def is_kept(self) -> bool:
        return self.path.exists()

    def has(self, name: str) -> bool:
        return os.path.lexists(f"{self.address}/{name}")

    def read(self, name: str) -> bytes | None:
        return files.content_of(f"{self.address}/{name}")

    async def fetch(self, name: str) -> bytes | None:
        from asyncio import to_thread  # here: whoever only compares keys does not pay for it

        return await to_thread(self.read, name)

    def ahead(self, names: Iterable[str]) -> Reader:
        return self.read

    def stamp(self, name: str) -> Stamp | None:
        """Size and time of modification."""
        return files.stamp(f"{self.address}/{name}")

    def doubt(self, name: str) -> None:
        with suppress(OSError):  # a reader may not be allowed to
            os.utime(self.path / name)

    def write(self, name: str, content: bytes) -> None:
        self._taken.discard(name)
        files.write_atomically(self._place(name), content)

    def link(self, source: Contents, name: str) -> None:
        """Hard links, where the file system can."""
        files.link_or_copy(f"{source.address}/{name}", self._place(name))
        self._taken.add(name)

    def _place(self, name: str) -> str:
        """Where a file goes; its array's folder is made for the first one."""
        array = name.rpartition("/")[0]
        if array and array not in self._arrays:
            (self.path / array).mkdir(exist_ok=True)
            self._arrays.add(array)
        return f"{self.address}/{name}"

    def shares(self, source: Contents, name: str) -> bool:
        """Also of a copy, which is to be what was published and not what it was copied from."""
        with suppress(OSError):  # the other version's is gone
            return name in self._taken or os.path.samefile(
                f"{self.address}/{name}", f"{source.address}/{name}"
            )
        return False

    def remove(self, name: str) -> None:
        self._arrays.discard(name)
        files.remove([self.path / name])

    def sweep(self, kept: Set[str]) -> None:
        """Also what killed writers left of files that they were writing."""
        files.remove(path for path in list(self.path.iterdir()) if path.name not in kept)
        files.remove(
            [Path(path) for path in files.files_below(self.address) if path.endswith(".partial")]
        )
        self._arrays.clear()

    def settle(self) -> None:
        make_durable(self.path)

    def explained(self, doing: str, *, size: int | None = None) -> AbstractContextManager[None]:
        return files.explained(self.path, doing, size=size)


class FolderVersion(StoredVersion):
    """A version that is an ordinary Zarr v3 group in a folder."""

    contents: Folder

    @property
    def path(self) -> Path:
        return self.contents.path


def version_in(path: Path, artifact: str) -> FolderVersion:
    """The version that a folder holds; the folder is called by its number."""
    return FolderVersion(Folder(path), artifact, int(path.name))
