"""Curvatures that are means over rows of second derivatives, summed batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.layered import LayeredNetwork, not_layered
from influence_dag.footprint import saved_numbers
from influence_dag.objective import Objective, Rows, without_denormals

# Columns differentiated together, and numbers in the widest of their temporaries: a backward pass
# over 256 copies of a batch leaves the processor's cache and takes twice as long a column, and
# temporaries of tens of MiB go back to the system each time, to be mapped page by page again.
_COLUMNS = 32
_NUMBERS = 2**21

Route = Literal["auto", "layered", "autograd"]


@dataclass(frozen=True, eq=False)
class BatchedCurvature(ABC):
    """Mean over `rows` at `objective.params`; sums over batches are in float64.

    `route` says how `dense` is formed: by matrix products for networks of Linear and
    elementwise layers ("layered"), one product a column for any model ("autograd"), or the
    former where possible ("auto"). Both give the same matrix.
    """

    objective: Objective
    rows: Rows
    batch_size: int = field(default=512, kw_only=True)
    route: Route = field(default="auto", kw_only=True)

    @property
    def size(self) -> int:
        """The number p of parameters."""
        return self.objective.size

    @property
    def dtype(self) -> torch.dtype:
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        return self.objective.device

    @without_denormals
    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The curvature times each row."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for batch in self.rows.batches(self.batch_size):
            product, size = self.product(batch), self._columns(batch)
            for start in range(0, len(vectors), size):
                chunk = slice(start, start + size)
                total[chunk] += product(vectors[chunk])
        return (total / len(self.rows)).to(vectors.dtype)

    def dense(self) -> Float[Tensor, "p p"]:
        """The matrix, exactly symmetric."""
        return self.dense_sum(self.rows).div_(len(self.rows)).to(self.dtype)

    @without_denormals
    def dense_sum(self, rows: Rows) -> Float[Tensor, "p p"]:
        """The sum, not the mean, over any rows in float64: what an update adds or subtracts."""
        if self.route != "autograd":
            network = LayeredNetwork.of(self.objective, rows)
            if network is not None:
                return self.layered_sum(network, rows)
            if self.route == "layered":
                raise not_layered(self.objective)
        return self._sum_of_products(rows)

    def _sum_of_products(self, rows: Rows) -> Float[Tensor, "p p"]:
        total = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.device)
        identity = torch.eye(self.size, dtype=self.dtype, device=self.device)
        for batch in rows.batches(self.batch_size):
            product, size = self.product(batch), self._columns(batch)
            for start in range(0, self.size, size):
                chunk = slice(start, start + size)
                total[chunk] += product(identity[chunk])
        return (total + total.T).div_(2)

    def _columns(self, batch: Rows) -> int:
        widest = max(saved_numbers(self.objective, batch), default=1)
        return max(1, min(_COLUMNS, _NUMBERS // max(1, widest * len(batch))))

    @abstractmethod
    def product(self, batch: Rows) -> Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]:
        """Row vectors times the sum over one batch; what is recorded is recorded once."""

    @abstractmethod
    def layered_sum(self, network: LayeredNetwork, rows: Rows) -> Float[Tensor, "p p"]:
        """The sum over rows in closed form."""
