"""Derivatives in inputs by autograd against differences of gradients, in float64, on a few rows."""

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.gradients.checks import random_weights
from influence_dag.influence.points import perturbation_point
from influence_dag.objective.attempts import NotRunError, attempted
from influence_dag.objective.objective import Objective, Rows

_ROWS = 12  # drawn from all
_STEPS = (1e-5, 1e-6)  # of differences, in units of a feature's own size
_ASIDE = 1e-3  # the same: how far inputs are moved off kinks that many of them lie on
_CLOSE = 1e-3  # relative difference that curvature of higher order explains
_SETTLED = 1e-2  # the same between the two steps
_SMALL = 1e-6  # of what is differentiated: a slope this small says nothing


def check_input_derivatives(
    objective: Objective, factors: Float[Tensor, "k p"], rows: Rows, wrt: str | None
) -> None:
    r"""Raise `ModelError` where torch's derivatives in the inputs are not those of its gradients.

    $$ v \cdot \frac{\partial}{\partial x} q(x) \approx \frac{q(x + \epsilon v) - q(x)}{\epsilon},
       \qquad q(x) = s^\top \nabla_\theta L(x) $$

    s is a random combination of the factors, v a random direction. What a model computes of its
    inputs under `no_grad` or detached has no derivative for autograd, which then gives zeros where
    moving the feature does change the answer. At a jump or kink differences do not settle, or are
    those of one side; so inputs are also moved a little aside, and most rows have to disagree. v
    has no negative entry: whole numbers that a model takes for categories stay what they are.
    """
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(rows), generator=generator)[:_ROWS].to(objective.device)
    s = (random_weights(factors.norm(dim=1), len(rows)) @ factors).double()
    try:
        along = _Along(objective, s, rows[some].to(dtype=torch.float64), wrt)
        verdicts = [each.verdicts() for each in along.of_each_input()]
    except (NotRunError, ModelError):  # where its dtype changes, or its inputs move
        return
    for right, told in verdicts:
        wrong = int((told & ~right).sum())
        if 2 * wrong <= int(told.sum()):
            continue
        where = "the inputs" if wrt is None else f"the output of module {wrt!r}"
        raise ModelError(
            f"the derivatives in {where} that torch gives of {type(objective.module).__name__} are "
            f"not those of its gradients (on {wrong} of {int(told.sum())} rows they differ from "
            "differences of gradients): a part of it uses them without their derivative "
            "(torch.no_grad(), detach(), .data, numpy), or has a backward that is not their "
            "derivative; take that off, or ask for the derivative in the output of a module behind "
            "it (wrt)"
        )


class _Along:
    r"""$q_i(x) = s^\top \nabla_\theta L(z_i)$ of rows, as a function of where they are."""

    def __init__(self, objective: Objective, s: Float[Tensor, " p"], rows: Rows, wrt: str | None):
        with attempted():
            self.objective, self.s, self.rows = objective.in_float64(), s, rows
            self.point = perturbation_point(self.objective, rows, wrt)
        self.start = self.point.leaves(rows)
        self.direction = list(_directions(self.start))

    def of_each_input(self) -> "Iterator[_Along]":
        """Along one of several inputs at a time: a small slope is not lost beside a large one."""
        for moved in range(len(self.direction)):
            along = copy.copy(self)
            along.direction = [v * (k == moved) for k, v in enumerate(self.direction)]
            yield along

    def verdicts(self) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Which rows agree, and of which rows that can be told."""
        right, told = self._verdicts(0.0)
        if right.all():
            return right, told
        beside, told_beside = self._verdicts(_ASIDE)
        return right | beside, right | told_beside

    def _verdicts(self, aside: float) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        at = self._moved(self.start, aside)
        base, slope, size = self._slopes(at)
        small = _SMALL * (base.abs() + base.abs().mean())
        coarse, fine = ((self._values(self._moved(at, e)) - base) / e for e in _STEPS)
        right = (fine - slope).abs() <= _CLOSE * (size + small)
        return right, right | ((coarse - fine).abs() <= _SETTLED * (fine.abs() + small))

    def _moved(self, leaves: list[Tensor], step: float) -> list[Tensor]:
        return [leaf + step * v for leaf, v in zip(leaves, self.direction, strict=True)]

    def _gradient(self, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient of the rows' losses weighted by u, with its graph, and u, which is 1."""
        theta = self.objective.params.clone().requires_grad_()
        values = self.point.losses(self.objective, theta, self.rows, leaves)
        u = torch.ones_like(values).requires_grad_()
        (gradient,) = torch.autograd.grad((u * values).sum(), theta, create_graph=True)
        return gradient, u

    def _values(self, leaves: list[Tensor]) -> Float[Tensor, " n"]:
        with torch.enable_grad(), attempted():
            gradient, u = self._gradient(leaves)
            return torch.autograd.grad((self.s * gradient).sum(), u)[0]

    def _slopes(
        self, leaves: list[Tensor]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """q, autograd's slope of it along the direction, and the size of the slope's terms."""
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad(), attempted():
            gradient, u = self._gradient(leaves)
            base, *found = torch.autograd.grad(
                (self.s * gradient).sum(), [u, *leaves], materialize_grads=True
            )
        terms = [
            (P * v).unsqueeze(-1).flatten(1) for P, v in zip(found, self.direction, strict=True)
        ]
        joined = torch.cat(terms, dim=1)
        return base, joined.sum(1), joined.norm(dim=1)


def _directions(leaves: list[Tensor]) -> Iterator[Tensor]:
    """Random numbers that are not negative, of the size of each feature among these rows."""
    generator = torch.Generator().manual_seed(1)
    for leaf in leaves:
        random = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).abs()
        size = leaf.square().mean(0).sqrt()
        overall = leaf.square().mean().sqrt()
        size = torch.where(size > 0, size, overall if overall > 0 else 1.0)
        yield random.to(leaf.device) * size
