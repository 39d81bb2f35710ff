"""The Hessian of the mean training loss."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from influence_dag.curvature.batched import BatchedCurvature
from influence_dag.curvature.finite import all_finite
from influence_dag.curvature.finite_differences import check_second_derivatives
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.curvature.layered_products import LayeredSum
from influence_dag.curvature.products import same_product
from influence_dag.curvature.structured import second_derivative_sum
from influence_dag.objective.objective import Rows
from influence_dag.objective.twice_differentiable import NOT_FOLLOWED, plain_gradient

# Largest relative difference of two routes to a product in float32: what one of a thousand rows
# would make. Where rounding makes more, autograd is what is used.
_AGREEMENT = 3e-5


@dataclass(frozen=True, eq=False)
class Hessian(BatchedCurvature):
    r"""Hessian of the mean training loss at `objective.params`.

    $$ H = \frac{1}{n} \sum_{i=1}^{n} \nabla_\theta^2 L(z_i, \theta) $$

    Indefinite in general. A product costs about two gradients (Pearlmutter, 1994).
    """

    def check_derivatives(self, rows: Rows) -> None:
        check_second_derivatives(self.objective, rows)

    def _sum_of(
        self, vectors: Float[Tensor, "k p"], rows: Rows, *, plain: bool = False
    ) -> Float[Tensor, "k p"]:
        """By products of matrices where the network is layered, else by autograd.

        If along a random vector they are autograd's over all of the rows. Autograd's second
        derivatives are then symmetric, as those of the matrices are by their form.
        """
        layered = None if plain or rows is not self.rows else self._layered
        if layered is None or not layered.is_worth(len(vectors)):
            return super()._sum_of(vectors, rows, plain=plain)
        with suppress(*NOT_FOLLOWED):  # a loss without a second derivative: for autograd to tell
            found = layered.products(vectors)
            if all_finite(found) and (layered.confirmed or self._confirm(layered)):
                return found
        layered.give_up()
        return super()._sum_of(vectors, rows, plain=plain)

    @cached_property
    def _layered(self) -> LayeredSum | None:
        network = None if self.route == "autograd" else self.layered_network
        return network and LayeredSum(network, self.rows, batch_size=self.batch_size)

    def _confirm(self, layered: LayeredSum) -> bool:
        places = list(self.objective.slices.values())
        vector = layered.balanced_vector(places)[None]
        (found,) = layered.products(vector)
        # Not through torch.func: its first use in a process imports a compiler, 1 CPU s.
        (truth,) = super()._sum_of(vector, self.rows, plain=True)
        if not same_product(found, truth, places, self.dtype, loose=_AGREEMENT):
            return False
        if not self._seen:
            self.check_derivatives(self.rows)
            object.__setattr__(self, "_seen", True)
        layered.confirmed = True
        return True

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
