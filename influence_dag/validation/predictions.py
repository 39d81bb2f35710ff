"""What influence functions predict, exactly solved and in float64: the side that refits check."""

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature import Hessian
from influence_dag.curvature.drawn_labels import output_gradient
from influence_dag.curvature.kronecker_fisher import output_hessians
from influence_dag.gradients.per_sample import per_sample_gradients, with_layout
from influence_dag.objective.objective import Objective
from influence_dag.objective.outputs import OutputSpace
from influence_dag.objective.rows import Inputs, Rows
from influence_dag.solvers import Direct, Factorization

_NUMBERS = 2**23  # of the Jacobians held at once


class ExactPredictions:
    r"""Influences of training rows at `objective.params`, with $H + \lambda I$ factorised once.

    `factorization`, where there is one already, is exact and for this damping.
    """

    def __init__(
        self,
        objective: Objective,
        train: Rows,
        *,
        damping: float,
        factorization: Factorization | None = None,
    ):
        self.objective, self.train, self.damping = objective, train, damping
        self._given = factorization

    @cached_property
    def factorization(self) -> Factorization:
        if self._given is not None:
            return self._given
        return Direct(damping=self.damping).factorize(Hessian(self.objective, self.train))

    def solve(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        r"""$(H + \lambda I)^{-1}$ times each row."""
        return self.factorization.solve(vectors, damping=self.damping).x

    def gradients(self, rows: Rows) -> Float[Tensor, "m p"]:
        return per_sample_gradients(self.objective, rows).dense()

    def factors(self, test: Rows) -> Float[Tensor, "k p"]:
        r"""$(H + \lambda I)^{-1} \nabla M(z_j)$, M being the measurement or the loss."""
        return self.solve(per_sample_gradients(self.objective, test, of="measurement").dense())

    def influences(self, test: Rows, rows: Rows) -> Float[Tensor, "k m"]:
        """Of any rows on each test row; not divided by n."""
        return self.factors(test) @ self.gradients(rows).T

    def corrected_influences(self, test: Rows, rows: Rows) -> Float[Tensor, "k m"]:
        r"""The same with each row's leverage: of gradients that are a Newton step without the row.

        $$ \tilde g_i = w_i J_i^\top \big(I - \tfrac{w_i}{W} S_i K_i\big)^{-1} \nabla_f L_i , \qquad
           K_i = J_i (H + \lambda I)^{-1} J_i^\top, \quad S_i = \nabla_f^2 L_i $$

        (w = 1, W = n without weights.) Then $(H + \lambda I)^{-1} \tilde g_i = (H + \lambda I -
        \tfrac{w_i}{W} J_i^\top S_i J_i)^{-1} w_i \nabla L_i$ (Woodbury), J being the
        Jacobian of the row's outputs f in θ. Exact Newton for a model linear in θ; elsewhere only
        the Gauss-Newton part of the row is left out. With squared loss and one output the residual
        is divided by one minus its leverage.
        """
        factors, parts = self.factors(test), []
        for J, g, S, shares in self._jacobians(rows):
            K = self.solve(J.flatten(0, 1)).view(J.shape) @ J.mT
            identity = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
            coefficients = torch.linalg.solve(identity - shares[:, None, None] * (S @ K), g)
            weights = shares * self.train.weight_sum
            parts.append(factors @ torch.einsum("bcp,bc,b->bp", J, coefficients, weights).T)
        return torch.cat(parts, dim=1)

    def _jacobians(self, rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """By batch: Jacobians in θ `(b, c, p)` of the outputs that the loss depends on, the loss's
        gradients `(b, c)` and Hessians `(b, c, c)` in them, shares in the mean.
        """
        width = OutputSpace.of(self.objective, rows[:1]).used().values.numel()
        for batch in rows.batches(max(1, _NUMBERS // (width * self.objective.size))):
            space = OutputSpace.of(self.objective, batch).used()
            f, along = space.values, space.along()
            shares = batch.weighted(f.new_ones(len(batch))) / self.train.weight_sum
            g = output_gradient(space.loss_of_flat, f, batch.y)
            S = output_hessians(space.loss_of_flat, f, batch.y)
            yield _of_each_output(along, batch.x, f), g, S, shares


def _of_each_output(
    along: Objective, x: Inputs, outputs: Float[Tensor, "b c"]
) -> Float[Tensor, "b c p"]:
    """Gradients in θ of the rows' outputs, `along` having the product with a vector for a loss."""
    identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    rows = [Rows(x, unit.expand_as(outputs)) for unit in identity]
    parts = with_layout(
        along,
        rows[0],
        lambda layout: [per_sample_gradients(along, each, layout=layout).dense() for each in rows],
    )
    return torch.stack(parts, dim=1)
