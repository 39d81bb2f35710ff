"""The Hessian of the mean training loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.finite_differences import check_second_derivatives
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.curvature.structured import second_derivative_sum
from influence_dag.objective.objective import Rows
from influence_dag.objective.twice_differentiable import plain_gradient


@dataclass(frozen=True, eq=False)
class Hessian(BatchedCurvature):
    r"""Hessian of the mean training loss at `objective.params`.

    $$ H = \frac{1}{n} \sum_{i=1}^{n} \nabla_\theta^2 L(z_i, \theta) $$

    Indefinite in general. A product costs about two gradients (Pearlmutter, 1994).
    """

    def check_derivatives(self, rows: Rows) -> None:
        check_second_derivatives(self.objective, rows)

    def product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        def total_loss(theta: Tensor) -> Tensor:
            return self.objective.total_loss(theta, batch)

        _, pull_back, *_ = vjp(grad(total_loss), self.objective.params)
        return vmap(lambda vector: pull_back(vector)[0])

    def plain_product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        theta = self.objective.params.clone().requires_grad_()
        with torch.enable_grad():
            total = self.objective.total_loss(theta, batch)
            gradient = plain_gradient(total, theta, create_graph=True)
        return lambda vector: plain_gradient(gradient, theta, vector)

    def layered_sum(self, network: LayeredNetwork, rows: Rows) -> Float[Tensor, "p p"]:
        return second_derivative_sum(network, rows, batch_size=self.batch_size)
