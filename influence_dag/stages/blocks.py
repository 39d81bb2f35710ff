"""Blocks of work, and the bounded pipeline that takes what is computed and writes it.

One thread takes results (and computes them, where nobody else does: linear algebra uses the cores
by itself), one or two write, and few blocks are in flight, so that memory depends neither on the
length of the job nor on which side is slower.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from influence_dag.store.threads import Workers

ChunkIndex = tuple[int, ...]
Item = TypeVar("Item")
Values = TypeVar("Values")


@dataclass(frozen=True)
class Tile:
    """A rectangle of whole chunks, clipped at the array's edge: one block of computation.

    The first axis may be one that is only computed with (`alone`), and not stored.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    chunk_indices: tuple[ChunkIndex, ...]
    is_alone: bool = False

    def __str__(self) -> str:
        """Where it lies in what is stored."""
        spans = list(zip(self.start, self.stop, strict=True))[self.is_alone :]
        return ", ".join(f"{start}:{stop}" for start, stop in spans)

    @property
    def region(self) -> tuple[slice, ...]:
        """Where the tile lies, to index an array with."""
        return tuple(map(slice, self.start, self.stop))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(last - first for first, last in zip(self.start, self.stop, strict=True))

    @property
    def alone(self) -> "Tile":
        """The same in an array that has one more axis, of length 1, before the others."""
        chunks = tuple((0, *index) for index in self.chunk_indices)
        return Tile((0, *self.start), (1, *self.stop), chunks, is_alone=True)

    @property
    def inner(self) -> "Tile":
        """The same in an array without the first axis."""
        chunks = tuple(index[1:] for index in self.chunk_indices)
        return Tile(self.start[1:], self.stop[1:], chunks)


def tiles(
    outdated: Iterable[ChunkIndex],
    chunks: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    max_values: int,
) -> list[Tile]:
    """Cover the outdated chunks with rectangles of at most `max_values` numbers each.

    Every outdated chunk lies in exactly one tile, no other chunk lies in any, and a chunk above
    the limit is a tile by itself. Tiles grow along the first axis (test) before the next (train):
    what is computed about a training row then serves as many test rows as possible.

    >>> [tile.region for tile in tiles([(0, 0), (1, 0)], (2, 4), (3, 4), max_values=100)]
    [(slice(0, 3, None), slice(0, 4, None))]
    """
    ordered = sorted(outdated)
    remaining, found = set(ordered), []
    for first in ordered:
        if first in remaining:
            last = _grow(first, remaining, chunks, shape, max_values)
            tile = _tile(first, last, chunks, shape)
            remaining.difference_update(tile.chunk_indices)
            found.append(tile)
    return found


def stream(
    results: Generator[tuple[Item, Values], None, None],
    write: Callable[[Item, Values], None],
    *,
    writers: int = 1,
    in_flight: int = 4,
) -> None:
    """Take each result on the calling thread, as it comes, while others are being written.

    At most `in_flight` results exist here at a time, counting the one that is asked for: nobody
    who computes is asked for more while writing is behind. An error on either side stops both and
    is raised here, after the writes under way have ended; what came before `results` failed is
    still written. `results` is closed whatever happens.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}; at least one block has to exist at a time")
    with closing(results), Workers(write, writers) as pool:
        given = ended = 0

        def settle(limit: int) -> None:
            nonlocal ended
            while given - ended > limit or pool.has_ended:
                ended += 1
                pool.end()

        settle(in_flight - 1)
        while (result := next(results, None)) is not None:
            given += 1
            pool.give(*result)
            del result  # or it would exist for as long as the next one is computed
            settle(in_flight - 1)
        settle(0)


def _grow(
    first: ChunkIndex,
    free: set[ChunkIndex],
    chunks: tuple[int, ...],
    shape: tuple[int, ...],
    max_values: int,
) -> ChunkIndex:
    """The far corner of the largest rectangle of free chunks from `first`, axis after axis."""
    last = first
    for axis in range(len(first)):
        while True:
            farther = (*last[:axis], last[axis] + 1, *last[axis + 1 :])
            slab = _rectangle((*first[:axis], farther[axis], *first[axis + 1 :]), farther)
            values = math.prod(_tile(first, farther, chunks, shape).shape)
            if values > max_values or not free.issuperset(slab):
                break
            last = farther
    return last


def _tile(
    first: ChunkIndex, last: ChunkIndex, chunks: tuple[int, ...], shape: tuple[int, ...]
) -> Tile:
    """The tile from one chunk to another, both included."""
    start = tuple(i * c for i, c in zip(first, chunks, strict=True))
    stop = tuple(min((i + 1) * c, n) for i, c, n in zip(last, chunks, shape, strict=True))
    return Tile(start, stop, tuple(_rectangle(first, last)))


def _rectangle(first: ChunkIndex, last: ChunkIndex) -> Iterator[ChunkIndex]:
    return itertools.product(*(range(i, j + 1) for i, j in zip(first, last, strict=True)))


def pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    """`start:stop` cut into runs of at most `size`."""
    for begin in range(start, stop, max(1, size)):
        yield slice(begin, min(stop, begin + max(1, size)))
