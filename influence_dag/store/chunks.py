"""Chunks of a variable, encoded and decoded as Zarr does with the codecs that `arrays` names.

Zarr takes a millisecond a chunk to find its way; a refresh that touches few chunks is made of such
milliseconds. Whoever else reads goes through Zarr.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

from influence_dag.store.arrays import BLOSC, chunk_file, crc32c
from influence_dag.store.files import write_atomically
from influence_dag.store.layout import ChunkIndex, Variable

Region = tuple[slice, ...]


def write_chunk(folder: Path, variable: Variable, index: ChunkIndex, values: NDArray) -> int:
    """Write one chunk (clipped at the array's edge) as a whole file; returns the file's size."""
    content = encoded(variable, values)
    path = folder / chunk_file(variable.name, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return len(content)


def read_region(variable: Variable, region: Region, load: Callable[[str], bytes]) -> NDArray:
    """Values of a region, given by slices along the leading dimensions; `load` reads a file.

    Checksums are the business of `load`.
    """
    spans = [
        range(*(region[axis] if axis < len(region) else slice(None)).indices(length))
        for axis, length in enumerate(variable.shape)
    ]
    values = np.empty(tuple(map(len, spans)), variable.dtype)
    if values.size:
        for index, inside, place in _pieces(variable, spans):
            values[place] = decoded(variable, load(chunk_file(variable.name, index)))[inside]
    return values


def encoded(variable: Variable, values: NDArray) -> bytes:
    """A chunk file's content: little-endian numbers, Blosc, the CRC-32C of what it made."""
    full = values
    if values.shape != variable.chunks:  # at the edge chunks are as large as elsewhere
        fill = np.nan if np.dtype(variable.dtype).kind in "fc" else 0
        full = np.full(variable.chunks, fill, variable.dtype)
        full[tuple(map(slice, values.shape))] = values
    full = np.ascontiguousarray(full.astype(full.dtype.newbyteorder("<"), copy=False))
    content = blosc.compress(full, BLOSC["cname"].encode(), BLOSC["clevel"], blosc.BITSHUFFLE)
    return content + crc32c(content).to_bytes(4, "little")


def decoded(variable: Variable, content: bytes) -> NDArray:
    """The numbers of a chunk file whose checksum is right."""
    values = np.frombuffer(blosc.decompress(content[:-4]), variable.dtype)
    return values.reshape(variable.chunks)


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
