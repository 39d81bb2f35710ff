r"""Products of vectors with gradients that are kept as pairs, $V_j \cdot \sum_t g_t a_t^\top$.

Gradients are written out for some rows and a run of θ at a time, in one buffer, across layers: what
fits in it takes one product of matrices, and dense gradients are never held.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS, _MOST_ROWS = 512, 2048  # at once: fewer make a thin product
_BYTES, _MOST_BYTES = 2**22, 2**25  # of what is written out: with few vectors it stays in a cache
_DEVICE_ROWS, _DEVICE_BYTES = 8192, 2**28  # where starting an operation is what costs
_COLUMNS = 256  # of a product that is contracted afterwards

Columns = tuple[slice, Float[Tensor, "size n"]]  # a run of θ, and the rows' gradients by it


class Segment(NamedTuple):
    """A run of θ, and what writes the rows' gradients by it, a column for each row."""

    start: int
    stop: int
    write: Callable[[Float[Tensor, "size n"]], object]


def written_at_once(vectors: Float[Tensor, "k p"]) -> tuple[int, int]:
    """What is written out for a product with so many vectors: how many rows, by how many places."""
    if vectors.device.type != "cpu":
        rows, size = _DEVICE_ROWS, _DEVICE_BYTES
    else:
        rows = min(max(_ROWS, 2 * len(vectors) // _ROWS * _ROWS), _MOST_ROWS)
        size = min(max(_BYTES, len(vectors) * 2**15), _MOST_BYTES)
    return rows, max(1, size // (rows * vectors.element_size()))


def dense_segments(start: int, values: Float[Tensor, "n size"], numbers: int) -> Iterator[Segment]:
    """Gradients that are written out already, in segments of so many places."""
    for some in even_runs(values.shape[1], numbers):
        columns = values[:, some].T
        yield Segment(start + some.start, start + some.stop, lambda out, c=columns: out.copy_(c))


def outer_segments(
    start: int, left: Float[Tensor, "n l"], right: Float[Tensor, "n r"], numbers: int
) -> Iterator[Segment]:
    r"""$l r^\top$ of each row, whose first entry lies at `start`, in segments of so many places.

    >>> l, r = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> ((start, stop, write),) = outer_segments(7, l, r, numbers=2)
    >>> start, stop, write(torch.zeros(2, 2)).T
    (7, 9, tensor([[ 3.,  4.],
            [10., 12.]]))
    """
    left, right = left.T.contiguous(), right.T.contiguous()
    for place, units, inputs in _blocks(start, len(left), len(right), numbers):
        these, those = left[units].unsqueeze(1), right[inputs].unsqueeze(0)

        def write(out: Tensor, these: Tensor = these, those: Tensor = those) -> Tensor:
            torch.mul(these, those, out=out.view(len(these), those.shape[1], out.shape[1]))
            return out

        yield Segment(place.start, place.stop, write)


def written_out(segments: Iterable[Segment], buffer: Float[Tensor, "b n"]) -> Iterator[Columns]:
    """Neighbours in θ, as many as the buffer holds, with all that they write; valid until next."""
    for run in _neighbours(sorted(segments, key=lambda each: each.start), len(buffer)):
        first, last = run[0].start, run[-1].stop
        for start, stop, write in run:
            write(buffer[start - first : stop - first])
        yield slice(first, last), buffer[: last - first]


def _neighbours(segments: Iterable[Segment], numbers: int) -> Iterator[list[Segment]]:
    run: list[Segment] = []
    for segment in segments:
        if run and (segment.start != run[-1].stop or segment.stop - run[0].start > numbers):
            yield run
            run = []
        run.append(segment)
    if run:
        yield run


def sums_written_out(
    start: int, left: Float[Tensor, "n t l"], right: Float[Tensor, "n t r"], buffer: Tensor
) -> Iterator[Columns]:
    r"""$\sum_t l_t r_t^\top$ of each row, in pieces that fit the buffer; valid until next.

    Products of matrices write a row's numbers side by side.
    """
    numbers, rows = buffer.shape
    for place, units, inputs in _blocks(start, left.shape[2], right.shape[2], numbers):
        some, others = left[:, :, units].mT, right[:, :, inputs]
        shape = rows, some.shape[1], others.shape[2]
        out = buffer.flatten()[: math.prod(shape)].view(shape)
        yield place, torch.bmm(some, others, out=out).flatten(1).T


def _blocks(
    start: int, units: int, width: int, numbers: int
) -> Iterator[tuple[slice, slice, slice]]:
    """A matrix, units by width, cut into whole rows or into parts of one: places, rows, columns."""
    for some in even_runs(units, numbers // max(1, width)):
        for inputs in even_runs(width, numbers):
            first = start + some.start * width + inputs.start
            size = (some.stop - some.start) * (inputs.stop - inputs.start)
            yield slice(first, first + size), some, inputs


def add_projected(
    V: Float[Tensor, "k lr"],
    a: Float[Tensor, "n d_in"],
    g: Float[Tensor, "n d_out"],
    out: Float[Tensor, "k n"],
    *,
    transposed: bool,
) -> None:
    r"""Add $V_j \cdot g a^\top$ by contracting `a` with V first: best for few vectors."""
    d_in, d_out = a.shape[1], g.shape[1]
    some_vectors = max(1, _COLUMNS // d_out) if a.device.type == "cpu" else len(V)
    for some in runs(len(V), some_vectors):
        W = V[some].view(-1, d_in, d_out).mT if transposed else V[some].view(-1, d_out, d_in)
        W = W.reshape(-1, d_in).T
        for rows in runs(len(a), _rows_projected(W)):
            projected = (a[rows] @ W).view(-1, len(V[some]), d_out)
            out[some, rows] += projected.mul_(g[rows].unsqueeze(1)).sum(2).T


def _rows_projected(W: Float[Tensor, "d_in k*d_out"]) -> int:
    on_cpu = W.device.type == "cpu"
    rows, size = (_ROWS, _BYTES // 2) if on_cpu else (_DEVICE_ROWS, _DEVICE_BYTES)
    return max(rows, size // (W.element_size() * max(1, W.shape[1])))


def runs(length: int, size: int) -> Iterator[slice]:
    """A length in runs of at most so many."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def even_runs(length: int, size: int) -> Iterator[slice]:
    """Runs of at most so many, or of one, all about as long: a short last one is a thin product."""
    pieces = -(-length // max(1, size))
    return runs(length, -(-length // max(1, pieces))) if length else iter(())
