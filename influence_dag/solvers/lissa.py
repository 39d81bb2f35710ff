"""LiSSA: the Neumann series of the inverse, from products with all rows or with mini-batches."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.errors import NotConvergedError
from influence_dag.solvers.base import (
    Solution,
    is_nearer,
    needed,
    of_unit_size,
    relative,
    start_of,
)
from influence_dag.solvers.minibatches import minibatch, random_batches, row_count
from influence_dag.solvers.neumann import Damped, Descent
from influence_dag.solvers.rounding import indefinite_error, round_up
from influence_dag.solvers.settings import Count, NotNegative, Positive, Seed, Settings, Share
from influence_dag.solvers.spectrum import extreme_eigenvalues
from influence_dag.study.method_defaults import LissaDefaults

_MARGIN = 1.05  # of the scale over the largest eigenvalue
_GROWTH = 2.0  # of a step over the first one: the series diverges
_NOISE = 1e3  # the same with mini-batches, whose steps differ by chance
_ESTIMATES = 3  # mini-batches whose largest eigenvalue is estimated


@dataclass(frozen=True, kw_only=True)
class LiSSA(Settings):
    r"""$h \leftarrow b + (1 - d)\, h - (H_B + \lambda I)\, h / s, \qquad x = h / s$

    Agarwal, Bullins & Hazan (2017), with all right-hand sides in one product a step. d is
    `dampen` (it adds $d s$ to λ), s is `scale`: the series converges when $s > \lambda_{max}(H) +
    \lambda$, with an error of about $(1 - (\lambda_{min} + \lambda)/s)^t$ after t steps. Without a
    `scale` the largest eigenvalue is estimated and s set just above.

    $H_B$ is the curvature of all rows, or of `batch_size` of them drawn anew for each step
    (`seed`). A row is converged when a step with all rows changes h by at most
    `rtol` of its norm. With all rows it stops there (two steps of a matrix at hand take one
    product: see `neumann`); mini-batches take `maxiter` steps, and the answer is the mean of the
    last half of h. Rows that are not converged then raise
    `NotConvergedError`, or with `on_failure="warn"` are kept and marked in `converged`.

    `anchored` mini-batches: after each pass ($n / B$ steps) one product with all rows says what is
    left of b, and the next pass is the series of that. Its noise is a share of what is left, so it
    goes to zero with it, and rows stop where a step with all rows says that they are converged; a
    pass that brought a row no nearer counts for that row as the one step with all rows. Batches
    whose own eigenvalues are far above `scale` are left for steps with all rows.
    """

    maxiter: Count = LissaDefaults.maxiter
    dampen: Share = LissaDefaults.dampen
    scale: Positive | None = LissaDefaults.scale
    rtol: NotNegative = LissaDefaults.rtol
    batch_size: Count | None = LissaDefaults.batch_size
    anchored: bool = False
    seed: Seed = LissaDefaults.seed
    on_failure: Literal["raise", "warn"] = LissaDefaults.on_failure

    def expected_products(self, *, size: int, rows: int, damping: float) -> float:
        """All steps of all rows, where each is with all training rows."""
        return 0 if self.batch_size is not None else rows * self.maxiter

    def factorize(self, curvature: Curvature) -> "NeumannSeries":
        largest = None if self.scale is not None else self._ends(curvature)[1]
        return NeumannSeries(curvature, self, largest)

    def restore(
        self, tensors: Mapping[str, Tensor], curvature: Curvature | None
    ) -> "NeumannSeries":
        largest = tensors["largest_eigenvalue"].item() if self.scale is None else None
        return NeumannSeries(needed(curvature, "lissa"), self, largest)

    def batches(self, curvature: Curvature) -> Iterator[Curvature]:
        """The curvature of each step with a mini-batch, without end."""
        assert self.batch_size is not None
        for index in random_batches(row_count(curvature), self.batch_size, seed=self.seed):
            yield minibatch(curvature, index)

    def _ends(self, curvature: Curvature) -> tuple[float, float]:
        """Smallest eigenvalue of all rows, largest of all rows and of some mini-batches."""
        smallest, largest = extreme_eigenvalues(curvature)
        if self.batch_size is not None:
            some = zip(range(_ESTIMATES), self.batches(curvature), strict=False)
            tops = [extreme_eigenvalues(batch, steps=20)[1] for _, batch in some]
            largest = 1.5 * max(largest, *tops)
        return smallest, largest

    def divergence(self, curvature: Curvature, *, damping: float, scale: float) -> Exception:
        """What to raise for a series that diverges: which scale would do, or that none would."""
        smallest, largest = self._ends(curvature)
        better = max(_MARGIN * (largest + damping), torch.finfo(curvature.dtype).tiny)
        if better <= scale:  # mini-batches whose eigenvalues the estimate has not met
            better = 2 * scale
        better = round_up(better)
        if smallest + damping + self.dampen * better <= 0:
            return indefinite_error(smallest, largest, damping=damping, dtype=curvature.dtype)
        return NotConvergedError(
            f"the series diverges with scale={scale:g}: it has to be above the largest "
            f"eigenvalue plus the damping, about {largest + damping:.3g}; use scale={better:g}"
        )


@dataclass(frozen=True, eq=False)
class NeumannSeries:
    """A curvature with the settings of its series; stored is the estimate that sets the scale."""

    curvature: Curvature
    settings: LiSSA
    largest_eigenvalue: float | None

    def tensors(self) -> dict[str, Tensor]:
        if self.largest_eigenvalue is None:
            return {}
        return {"largest_eigenvalue": torch.tensor(self.largest_eigenvalue, dtype=torch.float64)}

    @property
    def info(self) -> dict[str, float]:
        """What is known before any solve: the estimate, where one was made."""
        largest = self.largest_eigenvalue
        return {} if largest is None else {"largest_eigenvalue": largest}

    def scale(self, damping: float) -> float:
        """s: as set, or just above the largest eigenvalue of the damped curvature."""
        if self.settings.scale is not None:
            return self.settings.scale
        assert self.largest_eigenvalue is not None
        tiny = torch.finfo(torch.float32).tiny
        return max(_MARGIN * (self.largest_eigenvalue + damping), tiny)

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        r"""Solve from `x0` (one row for all, or one each) or, where zero is nearer, from $b / s$.

        Info: `scale`; per row `niter`, `converged`, `residual` (the true $\lVert r \rVert /
        \lVert b \rVert$, dampen counted as damping), `max_perc_residual` and `mean_perc_residual`
        (largest and mean $|step / h|$ over the entries of h in percent, for a step with all rows),
        and
        `residual_history`, $\lVert step \rVert / \lVert b \rVert$ at the start of each step (of
        mini-batches their own; NaN once the row has stopped).
        Raises `NotConvergedError` for rows that miss `rtol`, and with a scale that would do
        when the series diverges; `IndefiniteError` when no scale would.
        """
        scale, (rhs, size) = self.scale(damping), of_unit_size(rhs)
        operator = Damped(self.curvature, damping, scale, self.settings.dampen)
        start = rhs.clone()
        if x0 is not None:
            given = scale * start_of(x0, rhs, size)
            start = torch.where(is_nearer(operator.step(given, rhs), rhs), given, start)
        h, lengths = self._run(operator, start, rhs)
        niter = (~lengths.isnan()).sum(dim=1)
        step = operator.step(h, rhs)
        info = {"scale": scale, "niter": niter, "residual_history": relative(lengths, rhs)}
        info |= _quality(step, h, rhs, self.settings.rtol)
        self._report(info, step, h)
        return Solution(h / scale * size, info)

    def _run(
        self, operator: Damped, h: Tensor, rhs: Tensor
    ) -> tuple[Tensor, Float[Tensor, "k steps"]]:
        if self.settings.batch_size is None:
            return self._descend(operator, h, rhs)
        if self.settings.anchored:
            return self._passes(operator, h, rhs)
        return self._average(operator, h, rhs)

    def _descend(
        self, operator: Damped, h: Tensor, rhs: Tensor, *, taken: int = 0
    ) -> tuple[Tensor, Float[Tensor, "k steps"]]:
        """Steps with all rows; each right-hand side leaves when its step is small enough."""
        descent = Descent(
            operator,
            h,
            rhs,
            rtol=self.settings.rtol,
            most=self.settings.maxiter - taken,
            check=lambda length, first: self._check_growth(operator, length, first, _GROWTH),
        ).run()
        return descent.h, descent.lengths

    def _average(
        self, operator: Damped, h: Tensor, rhs: Tensor
    ) -> tuple[Tensor, Float[Tensor, "k steps"]]:
        """Steps with mini-batches; the mean of the last half evens out their noise."""
        maxiter = self.settings.maxiter
        h, total = h.clone(), torch.zeros_like(h)
        lengths: list[Tensor] = []
        steps = zip(range(maxiter), self.settings.batches(self.curvature), strict=False)
        for t, batch in steps:
            step = replace(operator, curvature=batch).step(h, rhs)
            lengths.append(step.norm(dim=1))
            self._check_growth(operator, lengths[-1], lengths[0], _NOISE)
            h += step
            if t >= maxiter // 2:
                total += h
        return total / (maxiter - maxiter // 2), torch.stack(lengths, dim=1)

    def _passes(
        self, operator: Damped, h: Tensor, rhs: Tensor
    ) -> tuple[Tensor, Float[Tensor, "k steps"]]:
        """Passes of mini-batches, each on what a step with all rows says is left of b."""
        h, rows = h.clone(), torch.arange(len(rhs), device=rhs.device)
        batches, lengths = self.settings.batches(self.curvature), []
        left = operator.step(h, rhs)
        first = left.norm(dim=1)
        while len(rows) and len(lengths) < self.settings.maxiter:
            b, most = left[rows], self.settings.maxiter - len(lengths)
            moved, steps = self._pass(operator, batches, b, most)
            if moved is None:  # too different from each other for this scale
                h[rows], rest = self._descend(operator, h[rows], rhs[rows], taken=len(lengths))
                lengths += [_of_rows(rhs, rows, each) for each in rest.T]
                break
            lengths += [_of_rows(rhs, rows, each) for each in steps]
            now = operator.step(h[rows] + moved, rhs[rows])
            nearer = (now.norm(dim=1) < b.norm(dim=1))[:, None]
            h[rows] += torch.where(nearer, moved, b)
            if not nearer.all():  # what one step with all rows leaves
                now = torch.where(nearer, now, operator.step(b, b))
            left[rows], length = now, now.norm(dim=1)
            self._check_growth(operator, length, first[rows], _GROWTH)
            rows = rows[length > self.settings.rtol * h[rows].norm(dim=1)]
        return h, torch.stack(lengths, dim=1) if lengths else rhs[:, :0]

    def _pass(
        self, operator: Damped, batches: Iterator[Curvature], b: Tensor, most: int
    ) -> tuple[Tensor | None, list[Float[Tensor, " m"]]]:
        """The series of b by mini-batches, and the lengths of its steps; None where it diverges."""
        count = max(1, row_count(self.curvature) // (self.settings.batch_size or 1))
        moved, lengths = b.clone(), [b.norm(dim=1)]
        for _, batch in zip(range(min(count, most) - 1), batches, strict=False):
            step = replace(operator, curvature=batch).step(moved, b)
            lengths.append(step.norm(dim=1))
            if not (lengths[-1] <= _NOISE * lengths[0]).all():
                return None, []
            moved += step
        return moved, lengths

    def _check_growth(self, operator: Damped, length: Tensor, first: Tensor, limit: float) -> None:
        # Written so that NaN counts as growth.
        if not (length <= limit * first).all():
            damping, scale = operator.damping, operator.scale
            raise self.settings.divergence(self.curvature, damping=damping, scale=scale)

    def _report(self, info: dict[str, Any], step: Tensor, h: Tensor) -> None:
        failed = ~info["converged"]
        if not failed.any():
            return
        rows = failed.nonzero()[:, 0].tolist()
        noisy = self.settings.batch_size and not self.settings.anchored
        cure = "raise maxiter or rtol" + (", or batch_size" if noisy else "")
        worst = (step.norm(dim=1) / h.norm(dim=1))[failed].max()
        residual = info["residual"][failed].max()
        message = (
            f"{len(rows)} of {len(failed)} series still move by {worst:.1e} a step after "
            f"{self.settings.maxiter} steps with scale={info['scale']:g} (rows {{rows}}; rtol="
            f"{self.settings.rtol:g}; worst relative residual {residual:.1e}); "
            f"{cure}, lower scale towards the largest eigenvalue, or raise the damping"
        )
        error = NotConvergedError(message, rows=rows)
        if self.settings.on_failure == "raise":
            raise error
        warnings.warn(str(error), RuntimeWarning, stacklevel=3)


def _of_rows(rhs: Tensor, rows: Tensor, values: Float[Tensor, " m"]) -> Float[Tensor, " k"]:
    """Numbers of some rows among all, NaN for the others."""
    return torch.full_like(rhs[:, 0], torch.nan).index_copy(0, rows, values)


def _quality(step: Tensor, h: Tensor, rhs: Tensor, rtol: float) -> dict[str, Tensor]:
    share = torch.where(step == 0, step, step / h).abs()
    length = step.norm(dim=1)
    return {
        "converged": length <= rtol * h.norm(dim=1),
        "residual": relative(length, rhs),
        "max_perc_residual": 100 * share.amax(dim=1),
        "mean_perc_residual": 100 * share.mean(dim=1),
    }
