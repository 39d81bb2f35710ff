"""Curvatures of some of the training rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.blocks import Restricted


def minibatch(curvature: Curvature, index: Int[Tensor, " b"]) -> Curvature:
    """The mean over some rows instead of over all; for curvatures with `rows`."""
    if isinstance(curvature, Restricted):
        return replace(curvature, curvature=minibatch(curvature.curvature, index))
    rows = _rows(curvature)[index]
    if isinstance(curvature, BatchedCurvature):
        return curvature.over(rows)
    return replace(curvature, rows=rows)  # pyright: ignore[reportArgumentType]


def row_count(curvature: Curvature) -> int:
    """The number of rows that the curvature is a mean over."""
    if isinstance(curvature, Restricted):
        return row_count(curvature.curvature)
    return len(_rows(curvature))


def random_batches(count: int, size: int, *, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Positions of `size` (at most `count`) distinct rows, drawn anew each time, without end.

    Independent draws, not passes over shuffled rows: within a pass a batch says something about
    the next one, which leaves a bias in the mean of the iterates that more steps do not remove.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(count, generator=generator)[:size]


def _rows(curvature: Curvature) -> Any:
    rows = getattr(curvature, "rows", None)
    if rows is None:
        raise ValueError(
            f"{type(curvature).__name__} is not a mean over rows, so it has no mini-batches; "
            "leave batch_size out, or use Hessian or GaussNewton"
        )
    return rows
