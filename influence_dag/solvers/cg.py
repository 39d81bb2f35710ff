"""Block conjugate gradients: every product serves all unfinished right-hand sides."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.errors import NotConvergedError
from influence_dag.solvers.base import (
    Solution,
    indefinite_error,
    needed,
    register,
    relative,
    round_up,
)
from influence_dag.solvers.ekfac import EKFAC
from influence_dag.solvers.nystroem import Nystroem
from influence_dag.solvers.preconditioners import (
    Jacobi,
    Preconditioner,
    PreconditionerName,
    Unpreconditioned,
)
from influence_dag.solvers.spectrum import extreme_eigenvalues

_ROUNDING = 8  # units: relative residuals below this are out of reach
_STALLED = 64  # units: a relative residual that rounding keeps from falling further is as good


@register("cg")
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient:
    r"""Solves $(H + \lambda I)\, x = b$ by products with H alone, for many b at once.

    Hestenes & Stiefel (1952), preconditioned. A row stops when
    $\lVert r \rVert \le \max(\mathtt{rtol} \lVert b \rVert, \mathtt{atol})$ holds for its *true*
    residual, where an rtol below eight units of rounding counts as that (1e-6 in float32), and a
    residual that stopped falling before there is accepted below 64 units (8e-6 in float32): the
    products have no more digits. Step lengths belong to single rows: what else is in the block
    changes no answer.

    `preconditioner`: `"nystroem"` (of that `rank` and `seed`), `"jacobi"` (estimated from `rank`
    products), `"ekfac"` (for curvatures of a model) or `"none"`. `maxiter` counts products per
    row; default 10 p. Rows that miss the tolerance raise `NotConvergedError`, or with
    `on_failure="warn"` are kept and marked in `converged`.
    """

    rtol: float = 1e-6
    atol: float = 0.0
    maxiter: int | None = None
    preconditioner: PreconditionerName = "nystroem"
    rank: int = 100
    seed: int = 0
    on_failure: Literal["raise", "warn"] = "raise"

    def factorize(self, curvature: Curvature) -> "PreconditionedSystem":
        return PreconditionedSystem(curvature, self._precondition(curvature), self)

    def restore(
        self, tensors: Mapping[str, Tensor], curvature: Curvature | None
    ) -> "PreconditionedSystem":
        stored: Preconditioner = Unpreconditioned()
        if self.preconditioner == "jacobi":
            stored = Jacobi(tensors["diagonal"])
        elif self.preconditioner != "none":
            stored = self._approximation().restore(tensors, None)
        return PreconditionedSystem(needed(curvature, "cg"), stored, self)

    def _precondition(self, curvature: Curvature) -> Preconditioner:
        if self.preconditioner == "none":
            return Unpreconditioned()
        if self.preconditioner == "jacobi":
            return Jacobi.estimate(curvature, probes=self.rank, seed=self.seed)
        with warnings.catch_warnings():
            # Sketched directions that are left out make it weaker, not the answer wrong.
            warnings.filterwarnings("ignore", "the curvature is not positive along")
            return self._approximation().factorize(curvature)

    def _approximation(self) -> Nystroem | EKFAC:
        if self.preconditioner == "nystroem":
            # Power iterations would cost more products than they save for fewer than 30 rows.
            return Nystroem(rank=self.rank, seed=self.seed, power_iterations=0)
        if self.preconditioner == "ekfac":
            return EKFAC(seed=self.seed)
        raise ValueError(
            f"unknown preconditioner {self.preconditioner!r}; choose none, jacobi, nystroem, ekfac"
        )


@dataclass(frozen=True, eq=False)
class PreconditionedSystem:
    """A curvature with a preconditioner; only the latter is stored."""

    curvature: Curvature
    preconditioner: Preconditioner
    settings: ConjugateGradient

    def tensors(self) -> dict[str, Tensor]:
        return self.preconditioner.tensors()

    @property
    def info(self) -> dict[str, Any]:
        """What is known before any solve: the preconditioner, and what it knows of itself."""
        known = getattr(self.preconditioner, "info", {})
        return {"preconditioner": self.settings.preconditioner, **known}

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        r"""Solve every row, from `x0` (one row for all, or one each) or from zero.

        Info per row: `niter`, `converged`, `residual` (true, over $\lVert b \rVert$) and
        `residual_history`, the recurrence's after each iteration (NaN once the row has stopped).
        Raises `IndefiniteError` on meeting negative curvature, else `NotConvergedError` for rows
        that miss the tolerance.
        """
        rtol = max(self.settings.rtol, _ROUNDING * torch.finfo(rhs.dtype).eps)
        target = (rtol * rhs.norm(dim=1)).clamp(min=self.settings.atol)
        state = self._start(rhs, target, damping, x0)
        self._iterate(state, rhs, damping)
        length = state.residual.norm(dim=1)
        residual = relative(length, rhs)
        rounding = _STALLED * torch.finfo(rhs.dtype).eps
        converged = (length <= target) | (state.stalled & (residual <= rounding))
        if not converged.all():
            self._report(state, residual, converged, damping)
        info = {
            "niter": state.niter,
            "converged": converged,
            "residual": residual,
            "residual_history": state.history(rhs),
        }
        return Solution(state.x, info)

    def _start(self, rhs: Tensor, target: Tensor, damping: float, x0: Tensor | None) -> "_State":
        x = torch.zeros_like(rhs) if x0 is None else x0.to(rhs).expand_as(rhs).clone()
        residual = rhs.clone() if x0 is None else rhs - self._apply(x, damping)
        niter = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
        negative, stalled = (torch.zeros_like(niter, dtype=torch.bool) for _ in range(2))
        return _State(x, residual, target, niter, negative, stalled)

    def _iterate(self, state: "_State", rhs: Tensor, damping: float) -> None:
        """Descend; where the recurrence's residual strayed from the true one, start again there."""
        maxiter = self.settings.maxiter or 10 * rhs.shape[1]
        rows = (state.residual.norm(dim=1) > state.target).nonzero()[:, 0]
        while len(rows):
            before = state.residual[rows].norm(dim=1)
            self._descend(state, rows, damping, maxiter)
            state.residual[rows] = rhs[rows] - self._apply(state.x[rows], damping)
            now = state.residual[rows].norm(dim=1)
            again = (now > state.target[rows]) & (state.niter[rows] < maxiter)
            again &= ~state.negative[rows]
            # Less than halved by a whole descent: the dtype holds no more digits.
            state.stalled[rows] = again & ~(now < before / 2)
            rows = rows[again & (now < before / 2)]

    def _descend(
        self, state: "_State", rows: Int[Tensor, " k"], damping: float, maxiter: int
    ) -> None:
        """Plain preconditioned CG from the residuals of `rows`; rows leave as they finish."""
        residual = state.residual[rows]
        direction = z = self.preconditioner.precondition(residual, damping=damping)
        rz = (residual * z).sum(1)
        while len(rows):
            product = self._apply(direction, damping)
            curvature = (direction * product).sum(1)
            negative = curvature <= 0
            step = torch.where(negative, 0, rz / curvature)[:, None]
            state.x[rows] += step * direction
            residual = residual - step * product
            state.niter[rows] += 1
            state.negative[rows] = negative
            length = state.record(rows, residual)
            unfinished = (length > state.target[rows]) & ~negative
            go_on = unfinished & (state.niter[rows] < maxiter)
            rows, residual = rows[go_on], residual[go_on]
            z = self.preconditioner.precondition(residual, damping=damping)
            rz, previous = (residual * z).sum(1), rz[go_on]
            direction = z + (rz / previous)[:, None] * direction[go_on]

    def _apply(self, vectors: Tensor, damping: float) -> Tensor:
        return self.curvature.apply(vectors).add(vectors, alpha=damping)

    def _report(
        self, state: "_State", residual: Tensor, converged: Bool[Tensor, " k"], damping: float
    ) -> None:
        if state.negative.any() and self.settings.on_failure == "raise":
            ends = extreme_eigenvalues(self.curvature)
            raise indefinite_error(*ends, damping=damping, dtype=state.x.dtype)
        failed = ~converged
        message = self._explanation(state, residual, failed)
        error = NotConvergedError(message, rows=failed.nonzero()[:, 0].tolist())
        if self.settings.on_failure == "raise":
            raise error
        warnings.warn(str(error), RuntimeWarning, stacklevel=4)

    def _explanation(self, state: "_State", residual: Tensor, failed: Tensor) -> str:
        maxiter = self.settings.maxiter or 10 * state.x.shape[1]
        if (state.niter[failed] < maxiter).any() and not state.negative.any():
            # Where rounding ends a descent differs from one to the next: hence the margin.
            within_reach = round_up(4 * residual[failed].max().item())
            cure = (
                f"{state.x.dtype} holds no more digits: raise the damping, raise rtol to "
                f"{within_reach:g}, or use float64"
            )
        else:
            cure = "raise damping, maxiter or the preconditioner's rank"
        if state.negative.any():
            cure = f"{int(state.negative.sum())} met negative curvature; {cure}"
        return (
            f"{int(failed.sum())} of {len(failed)} systems missed rtol={self.settings.rtol:g}, "
            f"atol={self.settings.atol:g} after {int(state.niter.max())} iterations "
            f"(rows {{rows}}; worst relative residual {residual[failed].max():.1e}); {cure}"
        )


@dataclass(eq=False)
class _State:
    """Where each row stands."""

    x: Float[Tensor, "k p"]
    residual: Float[Tensor, "k p"]
    target: Float[Tensor, " k"]
    niter: Int[Tensor, " k"]
    negative: Bool[Tensor, " k"]
    stalled: Bool[Tensor, " k"]
    lengths: list[Float[Tensor, " k"]] = field(default_factory=list)

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
