"""The generalised Gauss-Newton matrix of the mean training loss."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.captured_products import CapturedLayout, CapturedSum
from influence_dag.curvature.layered import LayeredNetwork, gauss_newton_product
from influence_dag.curvature.products import random_vectors, same_product
from influence_dag.curvature.structured import second_derivative_sum
from influence_dag.objective.objective import Rows
from influence_dag.objective.outputs import OutputSpace, flat
from influence_dag.objective.twice_differentiable import plain_gradient

_SHOWN = 256  # rows at most over which products of pairs are held against autograd


@dataclass(frozen=True, eq=False)
class GaussNewton(BatchedCurvature):
    r"""Generalised Gauss-Newton matrix of the mean training loss at `objective.params`.

    $$ G = \frac{1}{n} \sum_{i=1}^{n} J_i^\top \, \nabla_f^2 L(f, y_i) \, J_i, \qquad
       J_i = \partial f(x_i, \theta) / \partial \theta $$

    Positive semidefinite where the loss is convex in the outputs f; equal to the Hessian for
    a model linear in θ (Schraudolph, 2002; Martens, 2020).
    """

    keeps: bool = field(default=True, kw_only=True)

    def for_one_product(self) -> "GaussNewton":
        """The same, which keeps nothing of the rows for products to come."""
        return replace(self, keeps=False)

    def check_derivatives(self, rows: Rows) -> None:
        """Nothing: of the network it takes first derivatives alone."""

    def _sum_of(
        self, vectors: Float[Tensor, "k p"], rows: Rows, *, plain: bool = False
    ) -> Float[Tensor, "k p"]:
        """From captured pairs, where they make up for what it costs to capture them.

        Every row's pairs are held against a backward pass where they are captured, and its root
        vectors against the loss; what is made of both against autograd (`_agrees`), of pairs that
        are kept once. What agrees is symmetric, as sums of squares are.
        """
        pairs = self._pairs_of(rows)
        if pairs is None or not pairs.is_worth(len(vectors)):
            return super()._sum_of(vectors, rows, plain=plain)
        found = pairs.products(vectors)
        if found is not None and (pairs.confirmed or self._agrees(pairs, found, vectors, rows)):
            pairs.confirmed = pairs.is_kept
            if rows is self.rows:
                object.__setattr__(self, "_seen", True)
            return found
        pairs.give_up()
        return super()._sum_of(vectors, rows, plain=plain)

    def _pairs_of(self, rows: Rows) -> CapturedSum | None:
        return self._pairs if rows is self.rows else self._captured(rows)

    @cached_property
    def _pairs(self) -> CapturedSum | None:
        return self._captured(self.rows)

    def _captured(self, rows: Rows) -> CapturedSum | None:
        layout = CapturedLayout.of(self.objective, rows) if self.route == "auto" else None
        if layout is None:
            return None
        return CapturedSum(
            self.objective, rows, layout, batch_size=self.batch_size, keeps=self.keeps
        )

    def _agrees(self, pairs: CapturedSum, found: Tensor, vectors: Tensor, rows: Rows) -> bool:
        """Whether a random combination is autograd's, and of pairs that others meet, any vector.

        Of many rows over some that are drawn: the algebra is the same for all.
        """
        u, v = random_vectors(1, len(vectors)), random_vectors(1, self.size)
        asked, v = u.to(vectors) @ vectors, v.to(vectors)
        if len(rows) > _SHOWN:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
            rows, asked = rows[order[:_SHOWN].sort().values], torch.cat([asked, v])
            answers = replace(pairs, rows=rows, keeps=False).products(asked)
            if answers is None:
                return False
        else:
            answers = u.to(found) @ found
            if pairs.is_kept:
                asked, answers = torch.cat([asked, v]), torch.cat([answers, pairs.summed(v)])
        places = list(self.objective.slices.values())
        return all(
            same_product(mine, product, places, self.dtype)
            for mine, product in zip(answers, super()._sum_of(asked, rows, plain=True), strict=True)
        )

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        space = OutputSpace.of(self.objective, batch)
        return gauss_newton_product(
            space.leaves, self.objective.params, lambda f: batch.weighted(space.losses(f))
        )

    def plain_product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        theta = self.objective.params.clone().requires_grad_()
        with torch.enable_grad():
            space, returned = OutputSpace.run(self.objective, theta, batch)
            outputs = flat(space.leaves_of(returned))
            u = torch.zeros_like(outputs).requires_grad_()
            pulled = plain_gradient(outputs, theta, u, create_graph=True)
            point = outputs.detach().requires_grad_()
            total = batch.weighted(space.loss_of_flat(point, batch.y)).sum()
            slope = plain_gradient(total, point, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            pushed = plain_gradient(pulled, u, vector)
            return plain_gradient(outputs, theta, plain_gradient(slope, point, pushed))

        return product

    def layered_sum(self, network: LayeredNetwork, rows: Rows) -> Float[Tensor, "p p"]:
        return second_derivative_sum(network, rows, gauss_newton=True, batch_size=self.batch_size)
