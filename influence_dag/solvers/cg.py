"""Block conjugate gradients: every product serves all unfinished right-hand sides."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.errors import NotConvergedError
from influence_dag.solvers.base import Solution, build, needed, of_unit_size, relative, start_of
from influence_dag.solvers.conjugate_directions import Iteration
from influence_dag.solvers.descent import State
from influence_dag.solvers.nystroem import Nystroem
from influence_dag.solvers.preconditioners import (
    Jacobi,
    Preconditioner,
    PreconditionerName,
    Unpreconditioned,
)
from influence_dag.solvers.rounding import indefinite_error, noise, round_up
from influence_dag.solvers.settings import Count, Natural, NotNegative, Seed, Settings
from influence_dag.solvers.spectrum import extreme_eigenvalues
from influence_dag.study.method_defaults import ConjugateGradientDefaults, check_rank_is_read

_ROUNDING = 8  # units: relative residuals below this are out of reach
_STALLED = 64  # units: a relative residual that rounding keeps from falling further is as good
_LEAST = 1000  # iterations a row by default
_ITERATIONS = 30  # that are expected at an ordinary damping


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Settings):
    r"""Solves $(H + \lambda I)\, x = b$ by products with H alone, for many b at once.

    Hestenes & Stiefel (1952), preconditioned. A row stops when
    $\lVert r \rVert \le \max(\mathtt{rtol} \lVert b \rVert, \mathtt{atol})$ holds for its *true*
    residual (of many rows looked at in random combinations; singly where these are not what the
    iteration says, and of rows near their target), where an rtol below eight units of rounding
    counts as that (1e-6 in float32), and a residual that stopped falling before there is accepted
    below 64 units (8e-6 in float32): the products have no more digits. With `search="own"` step
    lengths belong to single rows: what else is in the block changes no answer.

    With `search="shared"` every row searches in the directions of all of them (O'Leary 1980, *The
    block conjugate gradient algorithm*): for many rows and a curvature that many directions count
    in, a fraction of the products. What else is in the block then changes an answer, within its
    tolerance.

    A singular H needs no damping where b is in its range: what starts there stays there, and the
    answer is the one of least norm. (`"jacobi"` and `"ekfac"` would lead out of the range: without
    damping they are not used.) Directions along which the curvature is zero to rounding are
    not followed, and a row whose residual has not halved within p iterations (at least 100, at most
    300) stops; then a residual of the size of rounding of the longest b counts as met as well.

    `preconditioner`: `"nystroem"` (of that `rank` and `seed`), `"jacobi"` (estimated from `rank`
    products), `"ekfac"` (for curvatures of a model) or `"none"`. `power_iterations` of Nyström's
    are worth their products for thirty rows or more of a matrix. `maxiter` counts products per
    row; default 10 p, at least 1,000. Rows that miss the tolerance raise `NotConvergedError`, or
    with `on_failure="warn"` are kept and marked in `converged`.
    """

    rtol: NotNegative = ConjugateGradientDefaults.rtol
    atol: NotNegative = ConjugateGradientDefaults.atol
    maxiter: Count | None = ConjugateGradientDefaults.maxiter
    preconditioner: PreconditionerName = ConjugateGradientDefaults.preconditioner
    rank: Count = ConjugateGradientDefaults.rank
    search: Literal["own", "shared"] = ConjugateGradientDefaults.search
    seed: Seed = ConjugateGradientDefaults.seed
    on_failure: Literal["raise", "warn"] = ConjugateGradientDefaults.on_failure
    power_iterations: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_is_read(self.preconditioner, self.rank)

    def expected_products(self, *, size: int, rows: int, damping: float) -> float:
        """What is known of ordinary curvatures, with a preconditioner that looks into no layer."""
        if self.preconditioner == "ekfac":
            return 0
        steps = _ITERATIONS if damping > 0 else size
        return self.rank + rows * min(steps, self.maxiter or steps)

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

    def most(self, size: int) -> int:
        """The iterations that a row may take."""
        return self.maxiter or max(10 * size, _LEAST)

    def _precondition(self, curvature: Curvature) -> Preconditioner:
        if self.preconditioner == "none":
            return Unpreconditioned()
        if self.preconditioner == "jacobi":
            return Jacobi.estimate(curvature, probes=self.rank, seed=self.seed)
        with warnings.catch_warnings():
            # Sketched directions that are left out make it weaker, not the answer wrong.
            warnings.filterwarnings("ignore", "the curvature is not positive along")
            return self._approximation().factorize(curvature)

    def _approximation(self) -> Any:
        """The method whose factorisation preconditions."""
        if self.preconditioner == "nystroem":
            return Nystroem(rank=self.rank, seed=self.seed, power_iterations=self.power_iterations)
        return build("ekfac")


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
        r"""Solve every row, from `x0` (one row for all, or one each) or, where it is nearer, zero.

        Info per row: `niter`, `converged`, `residual` (over $\lVert b \rVert$) and
        `residual_history`, the recurrence's after each iteration (NaN once the row has stopped).
        Raises `IndefiniteError` on meeting negative curvature, else `NotConvergedError` for rows
        that miss the tolerance.
        """
        given, (rhs, size) = rhs, of_unit_size(rhs)
        x0 = None if x0 is None else start_of(x0, rhs, size)
        rtol = max(self.settings.rtol, _ROUNDING * torch.finfo(rhs.dtype).eps)
        target = torch.maximum(rtol * rhs.norm(dim=1), self.settings.atol / size[:, 0])
        iteration = Iteration(
            self.curvature,
            self.preconditioner,
            damping=damping,
            maxiter=self.settings.most(rhs.shape[1]),
            shared=self.settings.search == "shared",
            seed=self.settings.seed,
        )
        state = iteration.run(rhs, target, x0)
        length = state.residual.norm(dim=1)
        residual = relative(length, rhs)
        converged = length <= target
        if state.stalled.any():
            lowest = _STALLED * torch.finfo(rhs.dtype).eps * rhs.norm(dim=1)
            met = (length <= lowest) | (length.double() <= noise(given) / size[:, 0])
            converged |= state.stalled & met
        if not converged.all():
            self._report(state, residual, converged, damping)
        info = {
            "niter": state.niter,
            "converged": converged,
            "residual": residual,
            "residual_history": state.history(rhs),
        }
        return Solution(state.x.mul_(size), info)

    def _report(
        self, state: State, residual: Tensor, converged: Bool[Tensor, " k"], damping: float
    ) -> None:
        if state.negative.any() and self.settings.on_failure == "raise":
            ends = extreme_eigenvalues(self.curvature)
            raise indefinite_error(
                *ends, damping=damping, dtype=state.x.dtype, size=state.x.shape[1]
            )
        failed = ~converged
        message = self._explanation(state, residual, failed)
        error = NotConvergedError(message, rows=failed.nonzero()[:, 0].tolist())
        if self.settings.on_failure == "raise":
            raise error
        warnings.warn(str(error), RuntimeWarning, stacklevel=4)

    def _explanation(self, state: State, residual: Tensor, failed: Tensor) -> str:
        maxiter = self.settings.most(state.x.shape[1])
        if (state.niter[failed] < maxiter).any() and not state.negative.any():
            # Where rounding ends a descent differs from one to the next: hence the margin.
            within_reach = round_up(4 * residual[failed].max().item())
            double = state.x.dtype == torch.float64
            more = "standardise the columns" if double else "use float64"
            cure = (
                f"{state.x.dtype} holds no more digits: raise the damping, raise rtol to "
                f"{within_reach:g}, or {more}"
            )
        else:
            has_rank = self.settings.preconditioner not in ("none", "ekfac")
            cure = f"raise damping{', maxiter or rank' if has_rank else ' or maxiter'}"
        if state.negative.any():
            cure = f"{int(state.negative.sum())} met negative curvature; {cure}"
        return (
            f"{int(failed.sum())} of {len(failed)} systems missed rtol={self.settings.rtol:g}, "
            f"atol={self.settings.atol:g} after {int(state.niter.max())} iterations "
            f"(rows {{rows}}; worst relative residual {residual[failed].max():.1e}); {cure}"
        )
