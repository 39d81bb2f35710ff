"""Work that torch does in one thread, since sharing it takes longer than doing it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

_SHARED = 10**7  # multiplications of a pass, from which on two threads take less time than one
_SPECTRUM = 4096  # rows of a matrix that is tridiagonalised: two threads take twice the processor


@contextmanager
def one_thread(*, where: bool = True) -> Iterator[None]:
    """Inside, torch computes in this thread alone, where it is said to."""
    before = torch.get_num_threads()
    if not where or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_small_pass(rows: int, multiplications: int) -> bool:
    """Whether a pass of so many rows, forward and backward, gains nothing by a second thread.

    Each operation waits for all threads. Of 1,500 rows and 2,410 parameters a pass in two threads
    takes 2.1 times the processor time of one, of ten times as much work 1.4 times.
    """
    return rows * multiplications <= _SHARED


def eigenvalues(matrix: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    """Of a symmetric matrix, ascending.

    LAPACK's way to a tridiagonal matrix goes by products with vectors, which wait for memory: two
    threads take 2 to 3 times the processor time of one.
    """
    with one_thread(where=len(matrix) <= _SPECTRUM):
        return torch.linalg.eigvalsh(matrix)
