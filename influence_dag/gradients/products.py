r"""Products of vectors with gradients that are kept as pairs, $V_j \cdot \sum_t g_t a_t^\top$.

Gradients are written out a piece at a time, in one buffer that is small enough for a cache: on the
way to the matrix product they are neither written to memory nor read from it.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS, _BYTES = 512, 2**21  # of a piece: fewer rows make a thin product, more bytes leave the cache
_ALIGNED = 64  # rows of whose multiples products of matrices take least
_BYTES_OF_POSITIONS = 2**22  # where each row is a sum over them
_DEVICE_ROWS, _DEVICE_BYTES = 8192, 2**28  # where starting an operation is what costs
_SUM_BYTES, _DEVICE_SUMS = 2**21, 2**62  # of sums over layers; rows of them elsewhere
_COLUMNS = 256  # of a product that is contracted afterwards


def add_assembled(
    V: Float[Tensor, "k lr"],
    left: Float[Tensor, "n *t l"],
    right: Float[Tensor, "n *t r"],
    out: Float[Tensor, "k n"],
) -> None:
    r"""Add $V_j \cdot \sum_t l_t r_t^\top$ by writing out the gradients: best for many vectors.

    >>> out = torch.zeros(1, 2)
    >>> l, r = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> add_assembled(torch.tensor([[1.0, 1.0]]), l, r, out)
    >>> out
    tensor([[ 7., 22.]])
    """
    n, width = len(left), right.shape[-1]
    rows, units = _piece(left, width)
    buffer = right.new_empty(min(rows, n) * units * width)
    for some in runs(n, rows):
        these, those = _rows_last(left[some]), _rows_last(right[some])
        for places in runs(left.shape[-1], units):
            columns = slice(places.start * width, places.stop * width)
            out[:, some].addmm_(V[:, columns], _outer(these[places], those, buffer))


def add_projected(
    V: Float[Tensor, "k lr"],
    a: Float[Tensor, "n d_in"],
    g: Float[Tensor, "n d_out"],
    out: Float[Tensor, "k n"],
    *,
    transposed: bool,
) -> None:
    """The same of one position by contracting `a` with V first: best for few vectors."""
    d_in, d_out = a.shape[1], g.shape[1]
    some_vectors = max(1, _COLUMNS // d_out) if a.device.type == "cpu" else len(V)
    for some in runs(len(V), some_vectors):
        W = V[some].view(-1, d_in, d_out).mT if transposed else V[some].view(-1, d_out, d_in)
        W = W.reshape(-1, d_in).T
        for rows in runs(len(a), _piece(g, W.shape[1] // d_out)[0]):
            projected = (a[rows] @ W).view(-1, len(V[some]), d_out)
            out[some, rows] += projected.mul_(g[rows].unsqueeze(1)).sum(2).T


def row_pieces(out: Float[Tensor, "k n"]) -> Iterator[slice]:
    """Runs of rows whose products with all vectors are added up in a cache, layer after layer."""
    size = _SUM_BYTES // max(1, out.element_size() * len(out))
    return runs(out.shape[1], _rows(size) if out.device.type == "cpu" else _DEVICE_SUMS)


def _piece(left: Tensor, width: int) -> tuple[int, int]:
    """How many rows, and how many units of the left vectors, are written out at once."""
    on_cpu = left.device.type == "cpu"
    rows, size = _ROWS, _BYTES if left.ndim == 2 else _BYTES_OF_POSITIONS
    if not on_cpu:
        rows, size = _DEVICE_ROWS, _DEVICE_BYTES
    numbers, width, all_units = size // left.element_size(), max(1, width), max(1, left.shape[-1])
    units = max(1, min(all_units, numbers // (rows * width)))
    units = -(-all_units // -(-all_units // units))  # evenly: a last piece would be a thin product
    rows_of_units = numbers // (units * width)
    return _rows(rows_of_units) if on_cpu else max(rows, rows_of_units), units


def _rows(size: int) -> int:
    """At most so many, in whole lines of a cache, but no thin product."""
    return max(_ROWS, size // _ALIGNED * _ALIGNED)


def _rows_last(vectors: Float[Tensor, "n *t d"]) -> Float[Tensor, "d *t n"]:
    """What a product takes least with on its right; sums over positions come row by row."""
    return vectors.T.contiguous() if vectors.ndim == 2 else vectors.permute(2, 1, 0)


def _outer(
    left: Float[Tensor, "l *t n"], right: Float[Tensor, "r *t n"], buffer: Tensor
) -> Float[Tensor, "lr n"]:
    """Σ_t l_t r_tᵀ of each row, in the buffer."""
    units, width, n = len(left), len(right), left.shape[-1]
    out = buffer[: units * width * n]
    if left.ndim == 2:
        out = out.view(units, width, n)
        return torch.mul(left.unsqueeze(1), right.unsqueeze(0), out=out).flatten(0, 1)
    out = out.view(n, units, width)
    return torch.bmm(left.permute(2, 0, 1), right.permute(2, 1, 0), out=out).flatten(1).T


def runs(length: int, size: int) -> Iterator[slice]:
    """A length in runs of at most so many."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
