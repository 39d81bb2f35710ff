"""Chunks, encoded and decoded as Zarr does with the codecs that `arrays` names.

Zarr takes a millisecond a chunk to find its way; a refresh that touches few chunks is made of such
milliseconds. Whoever else reads goes through Zarr.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.store.arrays import BLOSC, chunk_file, crc32c, last_checksum, write_metadata
from influence_dag.store.contents import Unfinished
from influence_dag.store.layout import ChunkIndex, Coordinate, Variable

Region = tuple[slice, ...]


class Written(NamedTuple):
    """What is known of a chunk's file when it was written."""

    size: int
    checksum: int


def check_whole_chunks(
    variable: Variable, start: tuple[int, ...], values: NDArray, keys: Mapping[ChunkIndex, bytes]
) -> None:
    """A `StoreError` unless values at `start` fill whole chunks and `keys` names just those.

    Two writers of one chunk would lose each other's values silently.
    """
    dimensions = {len(variable.shape), len(start), values.ndim}
    if values.dtype != variable.dtype or len(dimensions) > 1:
        raise StoreError(
            f"{variable.name!r} takes {variable.dtype} of {len(variable.shape)} dimensions, "
            f"got {values.dtype} of {values.ndim} at {start}"
        )
    stop = tuple(first + length for first, length in zip(start, values.shape, strict=True))
    edges = list(zip(start, stop, variable.chunks, variable.shape, strict=True))
    if any(first % c or (last % c and last != n) or last > n for first, last, c, n in edges):
        raise StoreError(
            f"{variable.name!r}: region {start} to {stop} is not whole chunks of {variable.chunks} "
            f"in {variable.shape}; begin and end at multiples of the chunks or at the array's edge"
        )
    covered = set(itertools.product(*(range(f // c, -(-last // c)) for f, last, c, _ in edges)))
    if set(keys) != covered or not all(len(key) == 16 and any(key) for key in keys.values()):
        raise StoreError(
            f"{variable.name!r}: region {start} to {stop} covers chunks {sorted(covered)}, keys of "
            f"16 bytes (not zeros) are needed for exactly these, got {sorted(keys)}"
        )


def write_chunk(
    contents: Unfinished, variable: Variable, index: ChunkIndex, values: NDArray
) -> Written:
    """Write one chunk (clipped at the array's edge) as a whole file."""
    content = encoded(values, variable.chunks)
    contents.write(chunk_file(variable.name, index), content)
    return Written(len(content), last_checksum(content))


def read_region(variable: Variable, region: Region, load: Callable[[str], bytes]) -> NDArray:
    """Values of a region, given by slices along the leading dimensions; `load` reads a file.

    Checksums are the business of `load`.
    """
    spans = _spans(variable, region)
    values = np.empty(tuple(map(len, spans)), variable.dtype)
    if values.size:
        for index, inside, place in _pieces(variable, spans):
            content = load(chunk_file(variable.name, index))
            values[place] = decoded(content, values.dtype, variable.chunks)[inside]
    return values


def files_of(variable: Variable, region: Region) -> Iterator[str]:
    """The files that `read_region` asks for, in its order."""
    for index, _, _ in _pieces(variable, _spans(variable, region)):
        yield chunk_file(variable.name, index)


def encoded(values: NDArray, shape: tuple[int, ...]) -> bytes:
    """A chunk file's content: little-endian numbers, Blosc, the CRC-32C of what it made."""
    full = values
    if values.shape != shape:  # at the edge chunks are as large as elsewhere
        full = np.full(shape, np.nan if values.dtype.kind in "fc" else 0, values.dtype)
        full[tuple(map(slice, values.shape))] = values
    if full.dtype.kind == "T":
        buffer: Any = VLenUTF8().encode(full.astype(object).ravel())
    else:
        buffer = np.ascontiguousarray(full.astype(full.dtype.newbyteorder("<"), copy=False))
    content = blosc.compress(buffer, BLOSC["cname"].encode(), BLOSC["clevel"], blosc.BITSHUFFLE)
    return content + crc32c(content).to_bytes(4, "little")


def decoded(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    """The values of a chunk file whose checksum is right."""
    buffer = blosc.decompress(content[:-4])
    if dtype.kind == "T":
        return VLenUTF8().decode(buffer).astype(dtype).reshape(shape)
    return np.frombuffer(buffer, dtype).reshape(shape)


def write_array(contents: Unfinished, item: Coordinate) -> None:
    """Write a small array whole: its metadata and its one chunk."""
    values, chunk = item.values, whole_chunk(item.values.shape)
    write_metadata(
        contents, item.name, values.dtype, values.shape, chunk, dims=item.dims, attrs=item.attrs
    )
    if values.size:
        contents.write(chunk_file(item.name, (0,) * values.ndim), encoded(values, chunk))


def read_array(
    name: str, dtype: np.dtype, shape: tuple[int, ...], load: Callable[[str], bytes]
) -> NDArray:
    """The values that `write_array` wrote; `load` reads a file."""
    if 0 in shape:
        return np.empty(shape, dtype)
    values = decoded(load(chunk_file(name, (0,) * len(shape))), dtype, whole_chunk(shape))
    return values if values.flags.writeable else values.copy()


def whole_chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk that holds all of an array; a chunk has no axis of length 0."""
    return tuple(max(length, 1) for length in shape)


def _spans(variable: Variable, region: Region) -> list[range]:
    if any(part.step not in (None, 1) for part in region):
        raise StoreError(f"{variable.name!r}: {region} has steps; read all of it and take some")
    return [
        range(*(region[axis] if axis < len(region) else slice(None)).indices(length))
        for axis, length in enumerate(variable.shape)
    ]


def _pieces(variable: Variable, spans: list[range]) -> Iterator[tuple[ChunkIndex, Region, Region]]:
    """The chunks that a region touches: index, where inside the chunk, where in the result."""
    axes = []
    for span, size in zip(spans, variable.chunks, strict=True):
        touched = range(span.start // size, (span.stop - 1) // size + 1)
        bounds = [(max(span.start, k * size), min(span.stop, (k + 1) * size)) for k in touched]
        axes.append(
            [
                (k, slice(a - k * size, b - k * size), slice(a - span.start, b - span.start))
                for k, (a, b) in zip(touched, bounds, strict=True)
            ]
        )
    for chosen in itertools.product(*axes):
        index, inside, place = zip(*chosen, strict=True) if chosen else ((), (), ())
        yield index, inside, place
