"""The iteration of conjugate gradients, in directions of single rows or in shared ones."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.base import is_nearer
from influence_dag.solvers.descent import Progress, State
from influence_dag.solvers.preconditioners import OfAllDirections, Preconditioner, Unpreconditioned
from influence_dag.solvers.rounding import rounding

_DEPENDENT = 2  # of digits: directions are kept down to this root of rounding


@dataclass(frozen=True, eq=False)
class Iteration:
    r"""Preconditioned descents on $\tfrac12 x^\top (H + \lambda I) x - b^\top x$ of many rows."""

    curvature: Curvature
    preconditioner: Preconditioner
    damping: float = field(kw_only=True)
    maxiter: int = field(kw_only=True)
    shared: bool = field(kw_only=True)
    seed: int = field(kw_only=True)

    def run(
        self,
        rhs: Float[Tensor, "k p"],
        target: Float[Tensor, " k"],
        x0: Float[Tensor, "k p"] | None,
    ) -> State:
        """To residuals of length `target`, or until nothing helps.

        From `x0` where it is nearer to the answer than zero is, by what is left of b.
        """
        state = self._start(rhs, target, x0)
        self._iterate(state, rhs)
        return state

    def _start(self, rhs: Tensor, target: Tensor, x0: Tensor | None) -> State:
        x, residual = torch.zeros_like(rhs), rhs.clone()
        if x0 is not None:
            left = rhs - self._apply(x0)
            nearer = is_nearer(left, rhs)
            x, residual = torch.where(nearer, x0, x), torch.where(nearer, left, residual)
        niter = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
        negative, stalled = (torch.zeros_like(niter, dtype=torch.bool) for _ in range(2))
        return State(x, residual, target, niter, negative, stalled)

    def _iterate(self, state: State, rhs: Tensor) -> None:
        """Descend; where the recurrence's residual strayed from the true one, start again there."""
        rows = (state.residual.norm(dim=1) > state.target).nonzero()[:, 0]
        while len(rows):
            held, start, left = state.residual[rows], state.x[rows], rows
            before = held.norm(dim=1)
            if self.shared and len(rows) > 1:
                left = self._descend_together(state, rows)
            self._descend(state, left)
            for some in self._unconfirmed(state, rows, rhs).split(len(rows)):
                state.residual[some] = rhs[some] - self._apply(state.x[some])
            now = state.residual[rows].norm(dim=1)
            worse = ~(now <= before) & (state.niter[rows] < self.maxiter)
            if worse.any():
                state.x[rows[worse]], state.residual[rows[worse]] = start[worse], held[worse]
            again = (now > state.target[rows]) & (state.niter[rows] < self.maxiter)
            again &= ~state.negative[rows]
            # Less than halved by a whole descent: the dtype holds no more digits.
            state.stalled[rows] = again & ~(now < before / 2)
            rows = rows[again & (now < before / 2)]

    def _unconfirmed(
        self, state: State, rows: Int[Tensor, " k"], rhs: Float[Tensor, "m p"]
    ) -> Int[Tensor, " few"]:
        """The rows whose true residual has to be looked at, each by a product."""
        if self.shared:
            return rows
        return state.unconfirmed(rows, rhs, self._apply, seed=self.seed)

    def _descend(self, state: State, rows: Int[Tensor, " k"]) -> None:
        """Plain preconditioned CG from the residuals of `rows`; rows leave as they finish."""
        residual, preconditioner = state.residual[rows], self._usable
        z = preconditioner.precondition(residual, damping=self.damping)
        direction, rz = z.clone(), _inner(residual, z)
        progress = Progress.of(residual, state.x[rows])
        while len(rows):
            product = self._apply(direction)
            curvature = _inner(direction, product)
            zero = progress.rounding(direction, product)
            negative, flat = curvature < -zero, curvature <= zero
            step = torch.where(flat, 0, rz / curvature)[:, None]
            state.move(rows, step, direction)
            residual.addcmul_(step, product, value=-1)
            state.niter[rows] += 1
            state.negative[rows] = negative
            go_on = self._unfinished(state, rows, residual, progress, over=flat)
            if not go_on.all():
                state.residual[rows[~go_on]] = residual[~go_on]
                rows, residual, progress = rows[go_on], residual[go_on], progress.of_rows(go_on)
                direction, rz = direction[go_on], rz[go_on]
            z = preconditioner.precondition(residual, damping=self.damping)
            rz, previous = _inner(residual, z), rz
            direction.mul_((rz / previous)[:, None]).add_(z)

    def _unfinished(
        self,
        state: State,
        rows: Int[Tensor, " k"],
        residual: Float[Tensor, "k p"],
        progress: Progress,
        *,
        over: Bool[Tensor, " k"] | None = None,
    ) -> Bool[Tensor, " k"]:
        """Which rows go on after an iteration; who got nowhere is set back to its best.

        So is who has no residual any more: of a direction that is rounding alone, 0 / 0.
        """
        length = state.record(rows, residual)
        unfinished = ~(length <= state.target[rows])
        stalled = progress.stalled(length, state.x, rows) | ~length.isfinite()
        over = stalled if over is None else over | stalled
        back = unfinished & over & ~(length <= progress.mark)
        state.x[rows[back]] = progress.best[back]
        state.strayed |= bool(back.any())
        return unfinished & ~over & (state.niter[rows] < self.maxiter)

    def _descend_together(self, state: State, rows: Int[Tensor, " k"]) -> Int[Tensor, " m"]:
        r"""The same in directions that the rows share; those left for whom there are none.

        That is where the curvature is negative along one of them: single rows tell more of it. With
        orthonormal directions P (d, p) of all unfinished rows and $Q = A P$, every row takes the
        best step in the whole of their span,

        $$\alpha = (P^\top Q)^{-1} P^\top R, \quad X \mathrel{+}= P \alpha, \quad
          R \mathrel{-}= Q \alpha, \quad
          P \leftarrow \operatorname{orth}(Z - P (P^\top Q)^{-1} Q^\top Z), \quad Z = M^{-1} R$$

        (O'Leary 1980, preconditioned by M; directions that depend on each other are left out, as in
        Ji & Li 2017, *A breakdown-free block conjugate gradient method*). k rows see k directions a
        product instead of one: the more rows, the fewer products each.
        """
        residual, preconditioner = state.residual[rows], self._usable
        progress = Progress.of(residual, state.x[rows])
        directions = _orthonormal(preconditioner.precondition(residual, damping=self.damping))
        largest = 0.0
        while len(rows) and len(directions):
            products = self._apply(directions)
            largest = max(largest, products.norm(dim=1).max().item())
            zero = rounding(directions.dtype, directions.shape[1]) * largest
            inverse = _step_of(directions, products, zero=zero)
            if inverse is None:
                return rows
            steps = (directions @ residual.mT).mT @ inverse
            state.x[rows] += steps @ directions
            residual = residual - steps @ products
            state.niter[rows] += 1
            go_on = self._unfinished(state, rows, residual, progress)
            rows, residual, progress = rows[go_on], residual[go_on], progress.of_rows(go_on)
            z = preconditioner.precondition(residual, damping=self.damping)
            directions = _orthonormal(z - (z @ products.mT) @ inverse @ directions)
        return rows[:0]

    @property
    def _usable(self) -> Preconditioner:
        """Without a damping above rounding only what keeps rows of the range of H within it."""
        if not isinstance(self.preconditioner, OfAllDirections):
            return self.preconditioner
        least = rounding(self.curvature.dtype, self.curvature.size)
        least *= self.preconditioner.largest_eigenvalue
        return self.preconditioner if self.damping > least else Unpreconditioned()

    def _apply(self, vectors: Tensor) -> Tensor:
        return self.curvature.apply(vectors).add(vectors, alpha=self.damping)


def _inner(left: Float[Tensor, "k p"], right: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
    """Of each row: a block of products is a quarter of the time of as many products of two rows."""
    return (left * right).sum(dim=1)


def _step_of(
    directions: Float[Tensor, "d p"], products: Float[Tensor, "d p"], *, zero: float
) -> Float[Tensor, "d d"] | None:
    r"""$(P^\top A P)^{-1}$ where A is positive along the directions; None where it is negative.

    Below `zero` a curvature is nothing but rounding, and is not followed.
    """
    small = (directions @ products.T).to(torch.float64)
    values, basis = torch.linalg.eigh((small + small.mT) / 2)
    if values[0] < -zero:
        return None
    inverse = torch.where(values > zero, 1 / values, 0)
    return ((basis * inverse) @ basis.mT).to(directions.dtype)


def _orthonormal(vectors: Float[Tensor, "k p"]) -> Float[Tensor, "d p"]:
    """A basis of what the rows span, whatever their lengths; what depends on others is left out."""
    length = vectors.norm(dim=1, keepdim=True)
    rows = (vectors / length)[length[:, 0] > 0]
    if not len(rows):
        return rows
    basis, triangle = torch.linalg.qr(rows.mT)
    left, sizes, _ = torch.linalg.svd(triangle)
    kept = sizes > sizes[0] * torch.finfo(vectors.dtype).eps ** (1 / _DEPENDENT)
    return (basis @ left[:, kept]).mT.contiguous()
