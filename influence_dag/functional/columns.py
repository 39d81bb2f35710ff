"""Influences of test rows on training rows, block by block of these: each is columns."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from influence_dag.curvature.finite import all_finite
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import (
    GradientLayout,
    Gradients,
    per_sample_gradients,
    with_layout,
)
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.influence.positions import position_influences
from influence_dag.influence.upweighting import influences
from influence_dag.objective.objective import Objective, Rows

_TRAINING_ROWS = 4096  # whose gradients are held at once
MOMENT = 2.0  # seconds after which a bar tells how far one is


def _finite(values: Tensor) -> Tensor:
    """Influences as they are; `ModelError` where products of gradients have left the numbers."""
    if not all_finite(values):
        bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten()
        raise ModelError(
            f"the influences on test row {int(bad[0])} are not finite ({len(bad)} of {len(values)} "
            f"rows): their products overflow {values.dtype}; compute in float64, or scale the loss"
        )
    return values


def at_positions(objective: Objective, factors: Tensor, rows: Rows) -> Tensor:
    return _finite(position_influences(factors, objective, rows))


def up_weighted(objective: Objective, factors: Tensor, rows: Rows) -> Tensor:
    return columns_of(objective, rows, partial(influences, factors), layout=None)


def columns_of(
    objective: Objective,
    rows: Rows,
    kernel: Callable[[Gradients], Tensor],
    *,
    layout: GradientLayout | None,
) -> Tensor:
    """What the kernel makes of the gradients, block by block.

    In the layout of the test rows, if there is one and it serves these rows: one less to find.
    """

    def columns(layout: GradientLayout) -> Tensor:
        parts = [
            kernel(per_sample_gradients(objective, batch, layout=layout))
            for batch in _shown(rows.batches(_TRAINING_ROWS), -(-len(rows) // _TRAINING_ROWS))
        ]
        return _finite(torch.cat(parts, dim=1))

    with suppress(NotCaptured):
        if layout is not None:
            return columns(layout)
    return with_layout(objective, rows, columns)


def _shown(batches: Iterable[Rows], total: int) -> Iterable[Rows]:
    """With a bar on a terminal, once it takes longer than a moment."""
    return tqdm(batches, "influences", total, unit="block", delay=MOMENT, disable=None, leave=False)
