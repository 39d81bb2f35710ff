"""Per-sample gradients by one batched backward pass that captures each layer's pair."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from influence_dag.gradients.blocks import Gradients, LinearGradients
from influence_dag.gradients.capture import Captured, Pair, capture
from influence_dag.gradients.checks import check_batch
from influence_dag.gradients.found_layouts import gradient_layout, local_layers, of_layer
from influence_dag.gradients.layouts import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradients.row_by_row import dense_gradients, values_of
from influence_dag.gradients.uncaptured import NotCaptured, without_uncaptured
from influence_dag.objective.batching import Of
from influence_dag.objective.footprint import rows_in_cache
from influence_dag.objective.objective import Objective, Rows, flushed_denormals

_Result = TypeVar("_Result")


@flushed_denormals()
def per_sample_gradients(
    objective: Objective,
    rows: Rows,
    *,
    layout: GradientLayout | None = None,
    of: Of = "loss",
    batch_size: int = 512,
) -> Gradients:
    r"""$w_i \nabla_\theta L(z_i)$ of every row at `objective.params`, or of the measurement.

    w are the rows' weights, 1 without; a measurement (which is the loss where there is none) is
    a test row's own and is not weighed.

    Costs less than two batched gradients: the backward pass stops at each layer's output, the
    weight products are never formed; norms and embeddings take a pass through their layer alone.
    Parameters that cannot be captured (recurrent and tied weights) go through `vmap(grad)`. On
    every batch the gradients are held against a backward pass of $\sum_i u_i L_i$ with fresh random
    u, tensor by tensor; layers for which that fails are differentiated row by row. With a `layout`
    that names such a layer, `NotCaptured` is raised (`with_layout` finds one that serves all rows).

    Raises `ModelError` where the gradient of a row alone is not the one that it has in a batch.
    """
    if layout is None:
        return with_layout(
            objective,
            rows,
            lambda found: per_sample_gradients(
                objective, rows, layout=found, of=of, batch_size=batch_size
            ),
        )
    size = rows_in_cache(objective, rows, min(batch_size, len(rows)), of=of)
    parts = [
        _batch(objective, batch, layout, of, seed)
        for seed, batch in enumerate(rows.batches(max(1, size)))
    ]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Gradients.assembled(layout, tensors)


def with_layout(
    objective: Objective, sample: Rows, compute: Callable[[GradientLayout], _Result]
) -> _Result:
    """What `compute` makes with the layout of fewest numbers that serves all rows it meets.

    Starts from what a few rows of `sample` show; a layer that a later batch shows to be another
    (`NotCaptured`) is left to differentiation row by row, and `compute` is called again.
    """
    return without_uncaptured(
        lambda names: compute(gradient_layout(objective, sample, without=names))
    )


def _batch(
    objective: Objective, rows: Rows, layout: GradientLayout, of: Of, seed: int
) -> dict[str, Tensor]:
    names = (b.name if isinstance(b, LinearLayout) else b.layer for b in layout.blocks)
    layers = {name for name in names if name is not None}
    theta = objective.params.clone().requires_grad_()
    values = values_of(objective, of)
    captured = capture(objective.module, layers, lambda: values(theta, rows), len(rows))
    local = layers & local_layers(objective)
    pairs = _single_pairs(captured, layout, len(rows), local)
    dense = [b for b in layout.blocks if isinstance(b, DenseLayout) and b.layer is None]
    written = dense_gradients(objective, rows, dense, of) if dense else {}
    for name in local:
        written |= of_layer(objective, name, *pairs.pop(name))
    check_batch(
        *(theta, captured.values, layout.blocks, pairs, written),
        seed=seed,
        again=lambda near: values(near, rows),
    )
    tensors: dict[str, Tensor] = {}
    for block in layout.blocks:
        (first, *_) = names = list(block.row_shapes)
        if isinstance(block, LinearLayout):
            tensors |= dict(zip(names, pairs[block.name], strict=True))
        elif block.name in written:
            tensors[first] = written[block.name]
        else:
            assert block.layer is not None
            tensors[first] = _formed(block, *pairs[block.layer])
    return tensors


def _single_pairs(
    captured: Captured, layout: GradientLayout, rows: int, local: set[str]
) -> dict[str, Pair]:
    """The one pair of each layer, in the shapes of the layout where it is kept as a product."""
    shapes = {
        block.name: tuple(block.row_shapes.values())
        for block in layout.blocks
        if isinstance(block, LinearLayout)
    }
    strange = {
        name
        for name, pairs in captured.pairs.items()
        if len(pairs) != 1
        or any(part.shape[:1] != (rows,) for part in pairs[0])
        or (name not in local and any(part.ndim < 2 for part in pairs[0]))
        or tuple(tuple(part.shape[1:]) for part in pairs[0]) != shapes.get(name, _shapes(pairs[0]))
    }
    if strange:
        raise NotCaptured(strange)
    return {name: pairs[0] for name, pairs in captured.pairs.items()}


def _shapes(pair: Pair) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(part.shape[1:]) for part in pair)


def _formed(block: DenseLayout, a: Tensor, g: Tensor) -> Tensor:
    pair = LinearGradients("", a, g, None, None, block.transposed)
    return pair.bias_gradients() if block.is_bias else pair.weight_gradients()
