"""Gradients of single rows by autograd, each row a batch of its own: the general way."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from influence_dag.gradients.layouts import DenseLayout
from influence_dag.objective.rows import Rows
from influence_dag.structures import map_tensors

if TYPE_CHECKING:
    from influence_dag.objective.batching import Of
    from influence_dag.objective.objective import Objective

_DENSE_NUMBERS = 2**25  # dense gradients differentiated at once


def values_of(objective: "Objective", of: "Of") -> Callable[[Tensor, Rows], Tensor]:
    """What is differentiated, as a function of θ and rows."""
    if of == "measurement":
        return objective.measurements
    return lambda theta, rows: rows.weighted(objective.losses(theta, rows))


def dense_gradients(
    objective: "Objective", rows: Rows, blocks: list[DenseLayout], of: "Of"
) -> dict[str, Tensor]:
    """Gradients of some parameters, each row a batch of its own, under vmap where that can be."""
    constant = objective.params
    cuts = [(block.start, block.stop) for block in blocks]

    def value(subset: tuple[Tensor, ...], row: Rows) -> Tensor:
        return values_of(objective, of)(_with(constant, cuts, subset), row).reshape(())

    subset = tuple(constant[start:stop] for start, stop in cuts)
    size = max(1, _DENSE_NUMBERS // sum(stop - start for start, stop in cuts))
    parts = [_each_row(value, subset, batch) for batch in rows.batches(size)]
    return {
        block.name: torch.cat(values)
        for block, values in zip(blocks, zip(*parts, strict=True), strict=True)
    }


def _each_row(
    value: Callable[[tuple[Tensor, ...], Rows], Tensor], subset: tuple[Tensor, ...], rows: Rows
) -> tuple[Tensor, ...]:
    def of_one(subset: tuple[Tensor, ...], x: Any, y: Any, weights: Any) -> Tensor:
        return value(subset, Rows(*(map_tensors(_unsqueeze, part) for part in (x, y, weights))))

    try:
        in_dims = (None, 0, 0, None if rows.weights is None else 0)
        found = vmap(grad(of_one), in_dims)(subset, rows.x, rows.y, rows.weights)
        return tuple(values.detach() for values in found)  # others' tensors are constants
    except RuntimeError:
        # Code that looks at its data, operators without a batching rule, packed sequences: slow
        # but right. An error that has another cause comes again from here.
        each = [gradient_of_row(value, subset, row) for row in rows.batches(1)]
        return tuple(torch.stack(values) for values in zip(*each, strict=True))


def gradient_of_row(
    value: Callable[[tuple[Tensor, ...], Rows], Tensor], subset: tuple[Tensor, ...], row: Rows
) -> tuple[Tensor, ...]:
    """That of a batch of one row, by autograd as it stands; zero where nothing depends."""
    leaves = tuple(part.detach().requires_grad_() for part in subset)
    with torch.enable_grad():
        total = value(leaves, row)
    if not total.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(total, leaves, materialize_grads=True)


def _unsqueeze(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


def _with(theta: Tensor, cuts: list[tuple[int, int]], subset: tuple[Tensor, ...]) -> Tensor:
    pieces, position = [], 0
    for (start, stop), values in zip(cuts, subset, strict=True):
        pieces += [theta[position:start], values]
        position = stop
    return torch.cat([*pieces, theta[position:]])
