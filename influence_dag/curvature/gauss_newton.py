"""The generalised Gauss-Newton matrix of the mean training loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.captured_products import CapturedLayout, captured_products
from influence_dag.curvature.layered import LayeredNetwork, gauss_newton_product
from influence_dag.curvature.products import random_vectors, same_product
from influence_dag.curvature.structured import second_derivative_sum
from influence_dag.objective.objective import Rows
from influence_dag.objective.outputs import OutputSpace, flat
from influence_dag.objective.twice_differentiable import plain_gradient


@dataclass(frozen=True, eq=False)
class GaussNewton(BatchedCurvature):
    r"""Generalised Gauss-Newton matrix of the mean training loss at `objective.params`.

    $$ G = \frac{1}{n} \sum_{i=1}^{n} J_i^\top \, \nabla_f^2 L(f, y_i) \, J_i, \qquad
       J_i = \partial f(x_i, \theta) / \partial \theta $$

    Positive semidefinite where the loss is convex in the outputs f; equal to the Hessian for
    a model linear in θ (Schraudolph, 2002; Martens, 2020).
    """

    def check_derivatives(self, rows: Rows) -> None:
        """Nothing: of the network it takes first derivatives alone."""

    def _sum_of(self, vectors: Float[Tensor, "k p"], rows: Rows) -> Float[Tensor, "k p"]:
        """From captured pairs where there are more vectors than outputs to send back.

        If a random combination of them agrees with autograd over all of the rows.
        """
        captured = self._captured if self.route == "auto" else None
        if captured is not None and len(vectors) > captured.outputs:
            found = captured_products(
                self.objective, rows, captured.layout, vectors, batch_size=self.batch_size
            )
            if found is not None and self._agrees(found, vectors, rows):
                return found
        return super()._sum_of(vectors, rows)

    @cached_property
    def _captured(self) -> CapturedLayout | None:
        return CapturedLayout.of(self.objective, self.rows)

    def _agrees(self, found: Tensor, vectors: Tensor, rows: Rows) -> bool:
        (u,) = random_vectors(1, len(vectors)).to(vectors)
        (product,) = super()._sum_of((u @ vectors)[None], rows)
        places = list(self.objective.slices.values())
        return same_product(u.double() @ found, product, places, self.dtype)

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        space = OutputSpace.of(self.objective, batch)
        return gauss_newton_product(
            space.leaves, self.objective.params, lambda f: batch.weighted(space.losses(f))
        )

    def plain_product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        space = OutputSpace.of(self.objective, batch)
        theta = self.objective.params.clone().requires_grad_()
        with torch.enable_grad():
            outputs = flat(space.leaves(theta))
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
