r"""The series of LiSSA with all rows of data, two steps by one product where H is a matrix.

With $C = (H + \lambda I) / s + d I$ a step is $\delta_t = b - C h_t$ and $\delta_{t+1} =
\delta_t - C \delta_t$, so that of a symmetric C

$$ \delta_{t+2} = \delta_t - N \delta_t, \; N = 2 C - C^2, \qquad
   \lVert \delta_{t+1} \rVert^2 = \delta_t \cdot \delta_{t+2}, \qquad
   h_{t+2m} = h_t + (2 - C) \sum_{i<m} \delta_{t+2i} $$

N costs p products, and every two steps one; what is known of each step is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence_dag.curvature.operators import Curvature, DenseCurvature

_PAIRS = 32  # of steps by the recurrence, before one is taken of b - C h again
_SHORT = 8  # steps, for which the two products around the pairs are not worth it
_PAYS = 1.5  # products that are expected to be saved, for one that N costs
_SHRUNK = 1e-3  # share of a square that is left after a step, below which rounding may be as large


@dataclass(frozen=True, eq=False)
class Damped:
    r"""$C = (H + \lambda I) / s + d I$."""

    curvature: Curvature
    damping: float
    scale: float
    dampen: float

    def step(self, h: Float[Tensor, "k p"], b: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The step b - C h."""
        product = self.curvature.apply(h).add(h, alpha=self.damping)
        step = torch.sub(b, product, alpha=1 / self.scale)
        return step.sub_(h, alpha=self.dampen) if self.dampen else step

    def of_two(self) -> Float[Tensor, "p p"]:
        """N = 2 C - C²: not 1 - N, in which small eigenvalues would drown in the rounding of 1."""
        once = self.curvature.dense() / self.scale
        once.diagonal().add_(self.damping / self.scale + self.dampen)
        return torch.addmm(once, once, once, beta=2, alpha=-1)


@dataclass(eq=False)
class Descent:
    """Where each right-hand side stands; it leaves when its step is small enough.

    `check(lengths, first)` raises where steps grow, `most` is how many a row may take.
    """

    operator: Damped
    h: Float[Tensor, "k p"]
    rhs: Float[Tensor, "k p"]
    rtol: float
    most: int
    check: Callable[[Tensor, Tensor], None]
    taken: Int[Tensor, " k"] = field(init=False)
    lengths: Float[Tensor, "k steps"] = field(init=False)
    _of_two: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.h = self.h.clone()
        self.taken = torch.zeros(len(self.rhs), dtype=torch.int64, device=self.rhs.device)
        self.lengths = self.rhs[:, :0]

    def run(self) -> "Descent":
        """To the end of every row; `lengths` are then of its steps, NaN after the last."""
        rows = torch.arange(len(self.rhs), device=self.rhs.device)
        while len(rows) and self.most > 0:
            rows, left = self._one_step(rows)
            if self._pairs_pay(left):
                self._in_pairs(rows[left > _SHORT])
                rows = rows[self.taken[rows] < self.most]
        self.lengths = self.lengths[:, : int(self.taken.max())] if len(self.rhs) else self.lengths
        return self

    def _one_step(self, rows: Int[Tensor, " m"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The rows that go on, and how many steps each has left, at least."""
        # All of them as they stand: to gather and put back rows is a tenth of a step.
        of_all = len(rows) == len(self.rhs)
        h, b = (self.h, self.rhs) if of_all else (self.h[rows], self.rhs[rows])
        step = self.operator.step(h, b)
        length = step.norm(dim=1)
        self._record(rows, length)
        after = h.add_(step)
        if not of_all:
            self.h[rows] = after
        enough = self.rtol * after.norm(dim=1)
        go_on = (length > enough) & (self.taken[rows] < self.most)
        if not go_on.all():
            rows, length, enough = rows[go_on], length[go_on], enough[go_on]
        return rows, self._left(rows, length, enough)

    def _left(
        self, rows: Int[Tensor, " m"], length: Float[Tensor, " m"], enough: Float[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """From the last two lengths: of powers of a symmetric matrix each shrinks less."""
        most, at = self.most - self.taken[rows], self.taken[rows] - 1
        if not bool((at > 0).all()):
            return torch.zeros_like(length)
        shrinks = (length / self.lengths[rows, at - 1]).clamp(max=1).log()
        return ((enough / length).log() / shrinks).nan_to_num(posinf=torch.inf).clamp(max=most)

    def _pairs_pay(self, left: Float[Tensor, " m"]) -> bool:
        if not isinstance(self.operator.curvature, DenseCurvature):
            return False
        saved = float(left.where(left > _SHORT, 0).sum()) / 2
        return saved > (0 if self._of_two is not None else _PAYS * self.operator.curvature.size)

    def _in_pairs(self, rows: Int[Tensor, " m"]) -> None:
        """As long as neither step of a pair can be a row's last one, nor the first too short."""
        if self._of_two is None:
            self._of_two = self.operator.of_two()
        step = self.operator.step(self.h[rows], self.rhs[rows])
        total, place = torch.zeros_like(step), torch.arange(len(rows), device=rows.device)
        # Not the norm of h, but never less.
        norm, pairs = self.h[rows].norm(dim=1), int((self.most - self.taken[rows]).min()) // 2
        for _ in range(min(pairs, _PAIRS)):
            following = torch.addmm(step, step, self._of_two, alpha=-1)
            square, between = step.norm(dim=1).square(), (step * following).sum(dim=1)
            first, second = square.sqrt(), between.clamp(min=0).sqrt()
            norm = norm + first + second
            go_on = (torch.minimum(first, second) > self.rtol * norm) & (between > _SHRUNK * square)
            if not go_on.all():
                place, step, following = place[go_on], step[go_on], following[go_on]
                first, second, norm = first[go_on], second[go_on], norm[go_on]
            if not len(place):
                break
            self._record(rows[place], first)
            self._record(rows[place], second)
            if len(place) == len(rows):
                total += step
            else:
                total[place] += step
            step = following
        self.h[rows] += self.operator.step(total, 2 * total)

    def _record(self, rows: Int[Tensor, " m"], length: Float[Tensor, " m"]) -> None:
        """The next step of some rows, which may be at different ones."""
        at = self.taken[rows]
        room = int(at.max()) + 1 - self.lengths.shape[1]
        if room > 0:
            more = max(room, self.lengths.shape[1])
            self.lengths = torch.nn.functional.pad(self.lengths, (0, more), value=torch.nan)
        self.lengths[rows, at] = length
        self.taken[rows] += 1
        self.check(length, self.lengths[rows, 0])
