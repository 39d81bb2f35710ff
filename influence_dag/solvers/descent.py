"""Where the rows of an iterative solve stand, and whether they still get anywhere."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influence_dag.solvers.base import relative
from influence_dag.solvers.rounding import rounding

_PATIENCE = 100, 300  # iterations, about p, within which a residual has to halve once
_COMBINATIONS = 4  # of all rows, that confirm the residuals of the recurrence
_MANY = 32  # rows, from which that is worth it
_OFF = 0.25  # of their targets, by which all of them together may be off


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

    def stalled(
        self, length: Float[Tensor, " k"], x: Float[Tensor, "n p"], rows: Int[Tensor, " k"]
    ) -> Bool[Tensor, " k"]:
        """Note one more iteration of these rows of x, and where it has led."""
        halved = length <= self.mark / 2
        if halved.all():
            self.best = x[rows]
        elif halved.any():
            self.best[halved] = x[rows[halved]]
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

    def unconfirmed(
        self,
        rows: Int[Tensor, " m"],
        rhs: Float[Tensor, "k p"],
        apply: Callable[[Tensor], Tensor],
        *,
        seed: int,
    ) -> Int[Tensor, " few"]:
        r"""Those of the rows whose residual may be on another side of the target than it says.

        Products with random combinations of all rows, each over its target, say by how much the
        recurrence's residuals are off together, $(\sum_i \lVert r_i - (b_i - A x_i) \rVert^2 /
        t_i^2)^{1/2}$: where that is a quarter at most, all rows but those that are as near to their
        target are on the side of it that the recurrence says.
        """
        strayed, self.strayed = self.strayed, False
        if strayed or len(rows) < _MANY:
            return rows
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(_COMBINATIONS, len(rows), generator=generator, dtype=torch.float64)
        u = u.to(rhs) / self.target[rows]
        meant = u @ (rhs[rows] - self.residual[rows])
        off = (meant - apply(u @ self.x[rows])).norm() / _COMBINATIONS**0.5
        share = self.residual[rows].norm(dim=1) / self.target[rows]
        return rows if not off <= _OFF else rows[(share - 1).abs() <= off]

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
