"""The Hessian of the mean training loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from influence_dag.objective import Objective, Rows, without_denormals

# Columns differentiated together: a backward pass over 256 copies of a batch leaves the
# processor's cache and takes twice as long a column.
_COLUMNS = 32

Route = Literal["auto", "layered", "autograd"]


@dataclass(frozen=True, eq=False)
class Hessian:
    r"""Hessian of the mean training loss at `objective.params`.

    $$ H = \frac{1}{n} \sum_{i=1}^{n} \nabla_\theta^2 L(z_i, \theta) $$

    A product costs about two gradients (Pearlmutter, 1994); sums over batches are float64.
    """

    objective: Objective
    rows: Rows
    batch_size: int = 512
    route: Route = "auto"

    @property
    def size(self) -> int:
        return self.objective.size

    @property
    def dtype(self) -> torch.dtype:
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        return self.objective.device

    @without_denormals
    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """`H v` for every row v."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for batch in self.rows.batches(self.batch_size):
            product = self._product(batch)
            for start in range(0, len(vectors), _COLUMNS):
                chunk = slice(start, start + _COLUMNS)
                total[chunk] += product(vectors[chunk])
        return (total / len(self.rows)).to(vectors.dtype)

    @without_denormals
    def dense(self) -> Float[Tensor, "p p"]:
        """H as a matrix, exactly symmetric."""
        return (self.dense_sum(self.rows) / len(self.rows)).to(self.dtype)

    def dense_sum(self, rows: Rows) -> Float[Tensor, "p p"]:
        r"""$\sum_i \nabla^2 L(z_i)$ over any rows in float64: what an update adds or subtracts."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.device)
        identity = torch.eye(self.size, dtype=self.dtype, device=self.device)
        for batch in rows.batches(self.batch_size):
            product = self._product(batch)
            for start in range(0, self.size, _COLUMNS):
                chunk = slice(start, start + _COLUMNS)
                total[chunk] += product(identity[chunk])
        return (total + total.T) / 2

    def _product(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        """The sum of the batch's Hessians as a function of row vectors, recorded once."""

        def total_loss(theta: Tensor) -> Tensor:
            return self.objective.losses(theta, batch).sum()

        _, pull_back, *_ = vjp(grad(total_loss), self.objective.params)
        return vmap(lambda vector: pull_back(vector)[0])
