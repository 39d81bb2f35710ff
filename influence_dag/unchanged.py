"""What a stage uses of files that people edit: it has to stay what the stage's key is of.

Code that is edited while a stage waits for another process, a checkpoint that is replaced before it
is read: their numbers would be published under the key of what they were before. So whoever hashes
such a file notes it, whoever imports or reads it again notes that too, and before anything is
published all of it is compared once more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Hash = str | None


class ChangedError(Exception):
    """Something that a stage uses was edited meanwhile: what it has computed is of neither."""

    def __init__(self, what: str):
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} changed while it was used"


class Watch:
    """Hashes of what one stage uses, and how to take them again."""

    def __init__(self) -> None:
        self.checked = time.monotonic()
        self._seen: dict[str, tuple[Hash, Callable[[], Hash]]] = {}

    def note(self, what: str, seen: Hash, again: Callable[[], Hash]) -> None:
        if self._seen.setdefault(what, (seen, again))[0] != seen:
            raise ChangedError(what)

    def check(self) -> None:
        """Raise `ChangedError` for what is not as it was noted."""
        self.checked = time.monotonic()
        for what, (seen, again) in self._seen.items():
            if again() != seen:
                raise ChangedError(what)

    def check_often(self) -> None:
        """The same where it is asked for again and again: at most twice a second."""
        if time.monotonic() - self.checked > OFTEN:
            self.check()


OFTEN = 0.5  # seconds; a check reads the files
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching() -> Iterator[Watch]:
    """Inside, in this thread, what is noted is compared."""
    token = _watch.set(watch := Watch())
    try:
        yield watch
    finally:
        _watch.reset(token)


def watch() -> Watch:
    """The watch of the stage at work; one of nothing outside a stage."""
    return _watch.get() or Watch()


def note(what: str, again: Callable[[], Hash]) -> Hash:
    """The hash that `again` takes, noted by the stage at work under `what`, in words."""
    seen = again()
    watch().note(what, seen, again)
    return seen
