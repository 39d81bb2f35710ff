"""Curvatures that are means over rows of second derivatives, summed batch by batch."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.finite import all_finite, check_sum
from influence_dag.curvature.layered import LayeredNetwork, not_layered
from influence_dag.curvature.products import (
    check_symmetric,
    check_symmetric_products,
    is_matrix_of,
    random_vectors,
)
from influence_dag.errors import ModelError, check_known
from influence_dag.objective.footprint import of_numbers, widest_numbers
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.objective.twice_differentiable import NOT_FOLLOWED, no_derivative

# Columns differentiated together, and numbers in the widest of their temporaries: a backward pass
# over 256 copies of a batch leaves the processor's cache and takes twice as long a column, and
# temporaries of tens of MiB go back to the system each time, to be mapped page by page again.
_COLUMNS = 32
_NUMBERS = 2**21
_WEIGHED = 4  # rows of which is seen that they count by their weights
_PLAIN = 4  # times as many rows where one vector alone is multiplied

Route = Literal["auto", "layered", "autograd"]


@dataclass(frozen=True, eq=False)
class BatchedCurvature(ABC):
    """Weighted mean over `rows` at `objective.params`; sums over batches are in float64.

    `route` says how `dense` is formed: by matrix products for networks of Linear and
    elementwise layers ("layered"), one product a column for any model ("autograd"), or whatever is
    cheapest where possible ("auto"). Both give the same matrix. `checked` curvatures, over some
    rows of one whose second derivatives have been seen to be symmetric, are taken as such.
    """

    objective: Objective
    rows: Rows
    batch_size: int = field(default=512, kw_only=True)
    route: Route = field(default="auto", kw_only=True)
    checked: bool = field(default=False, kw_only=True)
    _seen: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_known("route", self.route, get_args(Route))
        object.__setattr__(self, "_seen", self.checked)

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

    @cached_property
    def weight_sum(self) -> float:
        """What sums over the rows are divided by."""
        return self.rows.weight_sum

    @property
    def is_layered(self) -> bool:
        """Whether `dense` is in closed form, unless its products turn out to be others."""
        return self.route != "autograd" and self.layered_network is not None

    @cached_property
    def layered_network(self) -> LayeredNetwork | None:
        """The objective as layers, as far as a few of the rows show."""
        return LayeredNetwork.of(self.objective, self.rows)

    def over(self, rows: Rows) -> Self:
        """The mean over some of the rows: of the same network, whose derivatives have been seen.

        Of rows with weights the sum over the share of all weights that so many rows have: divided
        by their own, means over random rows would have another mean than that of all.
        """
        some = replace(self, rows=rows, checked=True)
        if rows.weights is not None:
            vars(some)["weight_sum"] = self.weight_sum * len(rows) / len(self.rows)
        if self.route != "autograd":
            vars(some)["layered_network"] = self.layered_network
        return some

    @flushed_denormals()
    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The curvature times each row.

        Raises `ModelError` where torch has no second derivative, one that is not symmetric, or one
        that is not finite, naming the row.
        """
        asked = vectors.to(self.dtype)
        total = self._sum_of(asked, self.rows)
        self._check_products()
        if not all_finite(total) and all_finite(asked):
            self._check_finite(asked)
        return total.div_(self.weight_sum).to(vectors.dtype)

    def _check_finite(self, asked: Float[Tensor, "k p"]) -> None:
        """Raise `ModelError` for a product that is not: by a row's derivatives, or by its size."""
        check_sum(
            self._of_random_vectors(self.rows), self.objective, self.rows, self._of_random_vectors
        )
        raise ModelError(
            f"the curvature times vectors with entries up to {float(asked.abs().max()):.1e} "
            f"overflows {str(self.dtype).removeprefix('torch.')}: divide them by their length, by "
            "which products and solutions are multiplied then, or compute in float64"
        )

    def for_one_product(self) -> Self:
        """The curvature for who asks `apply` once."""
        return self

    def dense(self) -> Float[Tensor, "p p"]:
        """The matrix, exactly symmetric."""
        precise = torch.promote_types(self.dtype, torch.float32)
        return self._sum(self.rows, precise).div_(self.weight_sum).to(self.dtype)

    def dense_sum(self, rows: Rows) -> Float[Tensor, "p p"]:
        """The weighted sum, not the mean, over any rows in float64: what an update adds or takes.

        In closed form where the network is layered, if random products with double backward over
        all of the rows agree; else column by column. Raises as `apply`.
        """
        return self._sum(rows, torch.float64)

    @flushed_denormals()
    def _sum(self, rows: Rows, dtype: torch.dtype) -> Float[Tensor, "p p"]:
        """In closed form handed on in `dtype`, half the memory to go through for float32."""
        self.check_derivatives(rows)
        total = self._formed(rows, dtype)
        check_sum(total, self.objective, rows, self._of_random_vectors)
        return total

    def _formed(self, rows: Rows, dtype: torch.dtype) -> Float[Tensor, "p p"]:
        if self.route != "autograd":
            found = self.layered_network if rows is self.rows else None
            network = found or LayeredNetwork.of(self.objective, rows)
            with suppress(*NOT_FOLLOWED):  # a loss without a second derivative, told below
                if network is not None:
                    total = self.layered_sum(replace(network, sums=dtype), rows)
                    if self._confirms(total, rows):
                        return total
            if self.route == "layered":
                raise not_layered(self.objective)
        return self._sum_of_products(rows)

    def _sum_of(
        self, vectors: Float[Tensor, "k p"], rows: Rows, *, plain: bool = False
    ) -> Float[Tensor, "k p"]:
        """The sum over rows times each vector, float64."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        widest = widest_numbers(self.objective, rows)
        most = self.batch_size * (_PLAIN if plain else 1)
        for batch in rows.batches(of_numbers(self.objective, widest, most)):
            product = self._product(batch, plain=plain)
            size = max(1, min(_COLUMNS, _NUMBERS // max(1, widest * len(batch))))
            for start in range(0, len(vectors), size):
                chunk = slice(start, start + size)
                total[chunk] += product(vectors[chunk]).detach()  # others' tensors are constants
        return total

    def _product(self, batch: Rows, *, plain: bool = False) -> Callable[[Tensor], Tensor]:
        """`product`; by plain autograd where torch.func cannot follow the model, or at first."""
        ways = [*([self._one_by_one] if plain else []), self.product, self._one_by_one]
        recorded: list[Callable[[Tensor], Tensor]] = []

        def products(vectors: Tensor) -> Tensor:
            while True:
                try:
                    if not recorded:
                        recorded.append(ways[0](batch))
                    return recorded[0](vectors)
                except torch.OutOfMemoryError:
                    raise  # no word of derivatives
                except NOT_FOLLOWED as error:
                    if len(ways) == 1:
                        raise no_derivative("second", self.objective, error) from error
                    ways.pop(0)
                    recorded.clear()

        return products

    def _one_by_one(self, batch: Rows) -> Callable[[Tensor], Tensor]:
        plain = self.plain_product(batch)
        return lambda vectors: torch.stack([plain(vector) for vector in vectors])

    def _sum_of_products(self, rows: Rows) -> Float[Tensor, "p p"]:
        self._check_weights(rows)
        identity = torch.eye(self.size, dtype=self.dtype, device=self.device)
        total = self._sum_of(identity, rows)
        check_symmetric(total, self.objective)
        return (total + total.T).div_(2)

    def _confirms(self, total: Float[Tensor, "p p"], rows: Rows) -> bool:
        """Whether products by double backward over all rows are those of the matrix."""
        self._check_weights(rows, plain=True)
        places = list(self.objective.slices.values())
        # Not through torch.func: its first use in a process imports a compiler, 1 CPU s.
        same = is_matrix_of(
            lambda vector: self._sum_of(vector[None], rows, plain=True)[0],
            total,
            places,
            self.dtype,
        )
        if not same:
            warnings.warn(
                f"{type(self.objective.module).__name__} is no chain of Linear and elementwise "
                "layers for all of its rows: its curvature is formed column by column",
                RuntimeWarning,
                stacklevel=4,
            )
        return same

    def _check_products(self) -> None:
        """Once: of the sum over all rows, u · (C v) = v · (C u) has been seen."""
        if self._seen:
            return
        self.check_derivatives(self.rows)
        self._check_weights(self.rows)
        u, v = self._vectors
        products = self._of_random_vectors(self.rows)
        check_sum(products, self.objective, self.rows, self._of_random_vectors)
        check_symmetric_products((u, products[0]), (v, products[1]), self.objective)
        object.__setattr__(self, "_seen", True)

    def _check_weights(self, rows: Rows, *, plain: bool = False) -> None:
        """Raise `ModelError` where a row of weight w does not count w times.

        Seen in a few rows of different weights: together, and each alone without one.
        """
        if rows.weights is None:
            return
        v, order = self._vectors[:1], rows.weights.argsort()
        places = torch.linspace(0, len(rows) - 1, min(_WEIGHED, len(rows)), dtype=torch.float64)
        few = rows[order[places.long()]]
        found = self._sum_of(v, few, plain=plain)
        alone = [self._sum_of(v, few[k : k + 1].unweighted, plain=plain) for k in range(len(few))]
        parts = torch.cat([few[k : k + 1].weighted(part) for k, part in enumerate(alone)])
        largest, off = parts.norm(dim=1).sum(), (found[0] - parts.sum(0)).norm()
        if off > torch.finfo(self.dtype).eps ** 0.5 * largest:
            raise ModelError(
                f"{type(self).__name__} does not count rows by their weights (the sum over "
                f"{len(few)} of them is off by {off / largest:.0e}): a batch's products are sums "
                "of w_i times what row i adds, which Rows.weighted makes of values by row"
            )

    @property
    def _vectors(self) -> Float[Tensor, "two p"]:
        return random_vectors(2, self.size).to(self.device, self.dtype)

    def _of_random_vectors(self, rows: Rows) -> Float[Tensor, "two p"]:
        return self._sum_of(self._vectors, rows)

    @abstractmethod
    def check_derivatives(self, rows: Rows) -> None:
        """Raise `ModelError` for derivatives that autograd has wrong, where that can be seen."""

    @abstractmethod
    def product(self, batch: Rows) -> Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]:
        """Row vectors times the sum over one batch; what is recorded is recorded once.

        Each row counts by its weight where the batch has some (`Rows.weighted`).
        """

    @abstractmethod
    def plain_product(self, batch: Rows) -> Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]]:
        """The same for one vector at a time, without torch.func."""

    @abstractmethod
    def layered_sum(self, network: LayeredNetwork, rows: Rows) -> Float[Tensor, "p p"]:
        """The sum over rows in closed form."""
