"""What a backend keeps of a version: files by name, each written and read as a whole.

A version is the same files wherever it is kept (`zarr.json`, `influences/c.0.12`, `manifest.json`):
what they hold is the business of the modules beside this one, where they lie is a backend's.
"""

from collections.abc import Callable, Iterable, Set
from contextlib import AbstractContextManager
from typing import Protocol

Reader = Callable[[str], bytes | None]
Stamp = tuple[int, int]
"""Two whole numbers that are others after a file was replaced: a size, and a time or generation."""


class Contents(Protocol):
    """The files of one version; they never change again unless something is wrong."""

    @property
    def address(self) -> str:
        """Where they are, for messages: `<address>/<name>` is a file."""
        ...

    def is_kept(self) -> bool:
        """Whether the version is still there; False once it was removed."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is anything by that name, readable or not."""
        ...

    def read(self, name: str) -> bytes | None:
        """What a file holds; None without one."""
        ...

    async def fetch(self, name: str) -> bytes | None:
        """`read`, for Zarr, which asks for several at once."""
        ...

    def ahead(self, names: Iterable[str]) -> Reader:
        """`read`, for who asks for these files next: where each is a way off they are on theirs."""
        ...

    def stamp(self, name: str) -> Stamp | None:
        """What tells a file from the one that was there before, without reading it; None = gone."""
        ...

    def doubt(self, name: str) -> None:
        """A reader found the file to be another one: its stamp is to be another one as well."""
        ...


class Unfinished(Contents, Protocol):
    """The files of a version in the making; written from several threads, none of them twice."""

    def write(self, name: str, content: bytes) -> None:
        """Put a file there or replace it, at once: nobody sees half of it.

        The file of another version that was taken over under this name (`link`) stays as it is.
        """
        ...

    def link(self, source: Contents, name: str) -> None:
        """Have the file of another version of the same store, without a second copy if possible."""
        ...

    def shares(self, source: Contents, name: str) -> bool:
        """Whether a file is the very one of another version."""
        ...

    def remove(self, name: str) -> None:
        """Have no file of that name, nor any below it."""
        ...

    def sweep(self, kept: Set[str]) -> None:
        """Remove all that is not one of these files or below one of these names."""
        ...

    def settle(self) -> None:
        """Return when all of it outlasts the process, and the machine where that is promised."""
        ...

    def explained(self, doing: str, *, size: int | None = None) -> AbstractContextManager[None]:
        """Inside, what the backend fails with is a `StoreError` that says what to do.

        `size` is how many bytes are being written, at most.
        """
        ...
