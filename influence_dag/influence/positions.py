"""Influences of the positions of rows: which token of a training row, on which of a test row."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.losses.positions import position_losses
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.objective.twice_differentiable import NOT_FOLLOWED, plain_gradient

_ROWS = 64  # training rows whose graph is held at once
_FACTORS = 32  # differentiated together


@flushed_denormals()
def position_influences(
    factors: Float[Tensor, "k p"], objective: Objective, rows: Rows
) -> Float[Tensor, "k n *positions"]:
    r"""The share of each position of each training row in its influence.

    $$ I_{jit} = s_j^\top \nabla_\theta \ell_{it}, \qquad L(z_i) = \sum_t \ell_{it} $$

    with the terms of `position_losses`: a mean over a row's labelled positions divides each by
    their number, so that shares add up to the row's influence, weights of rows included. 0 where
    the target is ignored.

    Directional derivatives of the terms, by differentiating a vector-Jacobian product in its
    vector: about three passes over the rows a factor, whatever the number of positions. Raises
    `ModelError` as `position_losses` does.
    """
    parts = [_of_batch(factors, objective, batch) for batch in rows.batches(_ROWS)]
    return torch.cat(parts, dim=1)


def _of_batch(factors: Tensor, objective: Objective, rows: Rows) -> Tensor:
    theta = objective.params.clone().requires_grad_()
    with torch.enable_grad():
        terms = rows.weighted(_position_terms(objective, theta, rows))
        u = torch.zeros_like(terms).requires_grad_()
        pulled = plain_gradient(terms, theta, u, create_graph=True)
    if not pulled.requires_grad:
        return factors.new_zeros(len(factors), *terms.shape)
    return torch.cat([_pushed(pulled, u, some) for some in factors.split(_FACTORS)])


def _pushed(pulled: Tensor, u: Tensor, vectors: Float[Tensor, "k p"]) -> Tensor:
    settings: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    try:
        return torch.autograd.grad(pulled, u, vectors, is_grads_batched=True, **settings)[0]
    except NOT_FOLLOWED:
        return torch.stack([torch.autograd.grad(pulled, u, v, **settings)[0] for v in vectors])


def _position_terms(objective: Objective, theta: Tensor, rows: Rows) -> Tensor:
    return position_losses(objective.loss, objective.outputs(theta, rows.x), rows.y)


def positions_of(objective: Objective, rows: Rows) -> tuple[int, ...]:
    """The shape of a row's positions. Raises `ModelError` as `position_losses` does."""
    with torch.no_grad():
        return tuple(_position_terms(objective, objective.params, rows[:1]).shape[1:])


def positions_of_test(objective: Objective, rows: Rows) -> tuple[int, ...]:
    """The same of test rows, whose loss has to be what is measured."""
    if objective.measurement is not None:
        raise ValueError("positions of test rows are of their loss; leave the measurement out")
    return positions_of(objective, rows)


def position_gradients(objective: Objective, rows: Rows) -> Float[Tensor, "nt p"]:
    r"""$\nabla_\theta \ell_{jt}$ of each position of each test row, row by row."""
    of_one, found = copy.copy(objective), []
    for position in range(torch.Size(positions_of(objective, rows)).numel()):
        of_one.measurement = _term(objective, position)
        found.append(per_sample_gradients(of_one, rows, of="measurement").dense())
    return torch.stack(found, dim=1).flatten(0, 1)


def _term(objective: Objective, position: int) -> Callable[[Any, Any], Tensor]:
    return lambda output, target: position_losses(objective.loss, output, target).flatten(1)[
        :, position
    ]
