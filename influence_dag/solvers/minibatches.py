"""Curvatures of some of the training rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.blocks import Restricted


def minibatch(curvature: Curvature, index: Int[Tensor, " b"]) -> Curvature:
    """The mean over some rows instead of over all; for curvatures with `rows`."""
    if isinstance(curvature, Restricted):
        return replace(curvature, curvature=minibatch(curvature.curvature, index))
    rows = _rows(curvature)
    return replace(curvature, rows=rows[index])  # pyright: ignore[reportArgumentType]


def row_count(curvature: Curvature) -> int:
    """The number of rows that the curvature is a mean over."""
    if isinstance(curvature, Restricted):
        return row_count(curvature.curvature)
    return len(_rows(curvature))


def shuffled_batches(count: int, size: int, *, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Positions of consecutive batches, shuffled anew for each pass, without end.

    Every batch has `size` rows (at most `count`): what a pass leaves over, the next one gives a
    new chance.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _rows(curvature: Curvature) -> Any:
    rows = getattr(curvature, "rows", None)
    if rows is None:
        raise ValueError(
            f"{type(curvature).__name__} is not a mean over rows, so it has no mini-batches; "
            "leave batch_size out, or use Hessian or GaussNewton"
        )
    return rows
