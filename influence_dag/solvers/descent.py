"""Where the rows of an iterative solve stand, and whether they still get anywhere."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influence_dag.solvers.base import relative
from influence_dag.solvers.rounding import rounding

_PATIENCE = 100, 300  # iterations, about p, within which a residual has to halve once


@dataclass(eq=False)
class Progress:
    """Whether rows still get anywhere: `mark`, the residual of `best`, has to halve in time."""

    best: Float[Tensor, "k p"]
    mark: Float[Tensor, " k"]
    age: Int[Tensor, " k"]
    norm: Float[Tensor, " k"]

    @classmethod
    def of(cls, residual: Float[Tensor, "k p"], x: Float[Tensor, "k p"]) -> "Progress":
        length = residual.norm(dim=1)
        zero = torch.zeros_like(length)
        return cls(x, length, zero.to(torch.int64), zero)

    def of_rows(self, kept: Bool[Tensor, " k"]) -> "Progress":
        return Progress(*(each[kept] for each in (self.best, self.mark, self.age, self.norm)))

    def rounding(
        self, direction: Float[Tensor, "k p"], product: Float[Tensor, "k p"]
    ) -> Float[Tensor, " k"]:
        r"""How large $d^\top A d$ may be where it is nothing but rounding.

        $\lVert A \rVert$ is known from below, by the products that the row has seen.
        """
        length = direction.norm(dim=1)
        self.norm = torch.maximum(self.norm, (product.norm(dim=1) / length).nan_to_num())
        return rounding(direction.dtype, direction.shape[1]) * self.norm * length.square()

    def stalled(self, length: Float[Tensor, " k"], x: Float[Tensor, "k p"]) -> Bool[Tensor, " k"]:
        """Note one more iteration, and where it has led."""
        halved = length <= self.mark / 2
        if halved.any():
            self.best = torch.where(halved[:, None], x, self.best)
        self.mark = torch.where(halved, length, self.mark)
        self.age = torch.where(halved, 0, self.age + 1)
        least, most = _PATIENCE
        return self.age >= min(max(x.shape[1], least), most)


@dataclass(eq=False)
class State:
    """Where each row stands."""

    x: Float[Tensor, "k p"]
    residual: Float[Tensor, "k p"]
    target: Float[Tensor, " k"]
    niter: Int[Tensor, " k"]
    negative: Bool[Tensor, " k"]
    stalled: Bool[Tensor, " k"]
    lengths: list[Float[Tensor, " k"]] = field(default_factory=list)
    strayed: bool = False  # whether a row was set back: its residual is not x's

    def move(
        self, rows: Int[Tensor, " m"], step: Float[Tensor, "m 1"], direction: Float[Tensor, "m p"]
    ) -> None:
        """Some rows along a direction each; all of them in place: to gather them takes longer."""
        if len(rows) == len(self.x):
            self.x.addcmul_(step, direction)
        else:
            self.x[rows] += step * direction

    def record(self, rows: Int[Tensor, " m"], residual: Float[Tensor, "m p"]) -> Tensor:
        """The norms of some rows' residuals, noted as those of one iteration."""
        length = residual.norm(dim=1)
        self.lengths.append(torch.full_like(self.target, torch.nan))
        self.lengths[-1][rows] = length
        return length

    def history(self, rhs: Float[Tensor, "k p"]) -> Float[Tensor, "k steps"]:
        """Relative norms of residuals by iteration."""
        if not self.lengths:
            return self.target.new_empty(len(self.target), 0)
        return relative(torch.stack(self.lengths, dim=1), rhs)
