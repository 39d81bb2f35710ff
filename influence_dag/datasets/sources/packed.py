"""A file's bytes, unpacked where it is packed."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from influence_dag.errors import DataError

MOST_UNPACKED = 100  # times the packed size; tables are packed to a tenth or so


LEAST_LIMIT = 2**26  # bytes that are unpacked whatever the packed size


def content_of(path: Path, name: str) -> bytes:
    """The file's bytes, unpacked, read once: values, ids and lines are of the same moment."""
    try:
        return _unpacked(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name}: not a readable file: {said}") from error


def _unpacked(path: Path) -> bytes:
    """A file's bytes; those of what is packed in a `.gz` or `.zst`."""
    content = path.read_bytes()
    most = max(LEAST_LIMIT, MOST_UNPACKED * len(content))
    if path.suffix == ".gz":
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            return _up_to(most, stream)
    if path.suffix != ".zst":
        return content
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(
            f"{path}: reading .zst needs pyarrow; install influence-dag[parquet]"
        ) from error
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return _up_to(most, stream)


def _up_to(most: int, stream: Any) -> bytes:
    """All of a stream, unless that is more than it can honestly be."""
    parts, size = [], 0
    while part := stream.read(2**24):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(
                f"it unpacks to more than {MOST_UNPACKED} times its size, as tables do not; unpack "
                "it yourself where it is right"
            )
    return b"".join(parts)
