"""What Icechunk and an object store raise: as sentences, and what it says of an object."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from influence_dag.errors import StoreError

_OUTAGE = re.compile(
    r"dispatch failure|timed? ?out|connect|AccessDenied|Forbidden|SlowDown|InternalError|"
    r"credential|NoSuchBucket|ServiceUnavailable",
    re.IGNORECASE,
)
_GONE = re.compile(r"not found|NoSuchKey", re.IGNORECASE)
_ROT = re.compile(
    rf"{_GONE.pattern}|corrupt|incomplete|range was inva|serialize|manifest from chunk",
    re.IGNORECASE,
)
_REACH = (
    "look at the bucket, its credentials and its endpoint (AWS_… in the environment), and try again"
)
_REMOVE = "an object of it is damaged: remove what is there, and refresh"


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Inside, what Icechunk or the object store says is a `StoreError`."""
    try:
        yield
    except (StoreError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not is_theirs(error):
            raise
        if type(error).__name__ == "ConflictError":
            raise StoreError(
                f"{doing} failed: another writer has begun meanwhile; what is published stays, "
                "refresh again to go on from it"
            ) from error
        raise StoreError(
            f"{doing} failed: {said(error)}; {_REMOVE if is_rot(error) else _REACH}"
        ) from error


def is_theirs(error: Exception) -> bool:
    root = type(error).__module__.partition(".")[0]
    return root in {"icechunk", "botocore", "aiobotocore", "aiohttp", "s3fs"} or isinstance(
        error, OSError
    )


def is_rot(error: Exception) -> bool:
    """Whether an object is gone or is not what it was, as far as Icechunk knows."""
    is_told = is_theirs(error) and not _OUTAGE.search(str(error))
    return is_told and _ROT.search(str(error)) is not None


def said(error: Exception) -> str:
    """The first line of what an error says; Icechunk's draws a tree below it."""
    first = next((line for line in str(error).splitlines() if line.strip(" |")), "")
    causes = re.findall(r"-> (?!.*service error)(.+)", str(error))
    return " ".join([first.strip(" x|"), *(f"({cause.strip()})" for cause in causes[-1:])])


def found(read: Callable[[], bytes | None], doing: str) -> bytes | None:
    """What is read; None where an object is gone, nothing (`b""`) where it is not what it was."""
    try:
        return read()
    except Exception as error:
        return left_by(error, doing)


def left_by(error: Exception, doing: str) -> bytes | None:
    """What `found` is of an object whose reading raised this; an outage says nothing of it."""
    if not is_theirs(error) or _OUTAGE.search(str(error)):
        with told(doing):
            raise error
    return None if _GONE.search(str(error)) else b""
