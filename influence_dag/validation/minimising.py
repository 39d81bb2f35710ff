r"""Many smooth minimisations in lockstep: limited-memory BFGS with one row for each problem.

Every problem has its own line search, its own curvature pairs and stops on its own; what they
share is the evaluation of value and gradient (one call for all that are unfinished) and the
metric, an approximation of the inverse Hessian from which the recursion starts. For refits near
a known minimum that metric is $(H + \lambda I)^{-1}$, and the steps are Newton's but for the few
rows that differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Problems (positions of those unfinished) and their points → values and gradients.
Evaluate = Callable[[Int[Tensor, " m"], Float[Tensor, "m p"]], tuple[Tensor, Tensor]]
Metric = Callable[[Float[Tensor, "m p"]], Float[Tensor, "m p"]]

SUFFICIENT, FLATTER = 1e-4, 0.9  # the two Wolfe conditions
TRIALS = 30  # evaluations that one line search may take
ROUNDING = 1e-13  # decreases of the value below this share of it are noise


@dataclass(frozen=True, eq=False)
class Minima:
    """Where each problem ended: points, values, norms of the gradients, steps taken."""

    points: Float[Tensor, "m p"]
    values: Float[Tensor, " m"]
    gradient_norms: Float[Tensor, " m"]
    steps: Int[Tensor, " m"]


def minimise(
    evaluate: Evaluate,
    start: Float[Tensor, "m p"],
    *,
    metric: Metric | None = None,
    tolerance: float,
    max_steps: int,
    history: int = 60,
) -> Minima:
    """Minimise m functions of p numbers from the rows of `start`.

    A problem stops when its gradient's norm is at most `tolerance`, after `max_steps` steps, or
    where two line searches in a row find no lower point.
    """
    values, gradients = evaluate(torch.arange(len(start), device=start.device), start)
    state = _State.at(start, values, gradients)
    result = Minima(
        start.clone(), values.clone(), gradients.norm(dim=1), torch.zeros_like(state.problem)
    )
    memory = _Memory(history, metric)
    for _ in range(max_steps):
        unfinished = (result.gradient_norms[state.problem] > tolerance) & (state.failures < 2)
        if not unfinished.any():
            break
        if not unfinished.all():
            state, memory = state[unfinished], memory[unfinished]
        state = _step(evaluate, state, memory)
        result.points[state.problem] = state.points
        result.values[state.problem] = state.values
        result.gradient_norms[state.problem] = state.gradients.norm(dim=1)
        result.steps[state.problem] += 1
    return result


@dataclass(frozen=True, eq=False)
class _State:
    """The problems unfinished; `failures` counts line searches in a row that gave up."""

    problem: Int[Tensor, " m"]
    points: Float[Tensor, "m p"]
    values: Float[Tensor, " m"]
    gradients: Float[Tensor, "m p"]
    failures: Int[Tensor, " m"]

    @classmethod
    def at(cls, points: Tensor, values: Tensor, gradients: Tensor) -> "_State":
        problem = torch.arange(len(points), device=points.device)
        return cls(problem, points, values, gradients, torch.zeros_like(problem))

    def __getitem__(self, mask: Tensor) -> "_State":
        return _State(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


class _Memory:
    """Curvature pairs (step s, change of gradient y) of each problem, and the two-loop product."""

    def __init__(self, size: int, metric: Metric | None):
        self.size, self.metric = size, metric
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1 / sᵀy (0: no pair)
        self.scale: Tensor | None = None

    def __getitem__(self, mask: Tensor) -> "_Memory":
        kept = _Memory(self.size, self.metric)
        kept.pairs = [(s[mask], y[mask], inverse[mask]) for s, y, inverse in self.pairs]
        kept.scale = None if self.scale is None else self.scale[mask]
        return kept

    def direction(self, gradients: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Minus the approximate inverse Hessians times the gradients (Nocedal, 1980)."""
        q, coefficients = gradients.clone(), []
        for s, y, inverse in reversed(self.pairs):
            a = inverse * _dot(s, q)
            q.addcmul_(a[:, None], y, value=-1.0)
            coefficients.append(a)
        q = self._initial(q)
        for (s, y, inverse), a in zip(self.pairs, reversed(coefficients), strict=True):
            q.addcmul_((a - inverse * _dot(y, q))[:, None], s)
        return q.neg_()

    def _initial(self, q: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        if self.metric is not None:
            return self.metric(q)
        # Nothing is known of the scale before the first step: as long as a unit gradient's.
        scale = 1 / q.norm(dim=1).clamp_min(1.0) if self.scale is None else self.scale
        return scale[:, None] * q

    def add(self, s: Float[Tensor, "m p"], y: Float[Tensor, "m p"]) -> None:
        """Remember a step, but for problems where it met no positive curvature."""
        product, square = _dot(s, y), _dot(y, y)
        good = product > 1e-10 * (_dot(s, s) * square).sqrt()
        inverse = torch.where(good, 1 / torch.where(good, product, 1.0), 0.0)
        self.pairs = [*self.pairs, (s, y, inverse)][-self.size :]
        fallback = torch.ones_like(product) if self.scale is None else self.scale
        self.scale = torch.where(good, product / torch.where(good, square, 1.0), fallback)

    def forget(self, problems: Tensor) -> None:
        """Drop the pairs of problems whose line search failed: back to the metric alone."""
        if problems.any():
            for _, _, inverse in self.pairs:
                inverse[problems] = 0.0


def _dot(a: Float[Tensor, "m p"], b: Float[Tensor, "m p"]) -> Float[Tensor, " m"]:
    return torch.linalg.vecdot(a, b)  # a third of the time of einsum


def _step(evaluate: Evaluate, state: _State, memory: _Memory) -> _State:
    there = _line_search(evaluate, state, memory.direction(state.gradients))
    memory.add(there.points - state.points, there.gradients - state.gradients)
    memory.forget(there.failures > 0)
    return there


def _line_search(evaluate: Evaluate, state: _State, direction: Float[Tensor, "m p"]) -> _State:
    """The first point of bisection and doubling that meets the Wolfe conditions, for each problem.

    Weak conditions, as Lewis & Overton (2013): each trial shrinks or doubles the bracket. Where
    the value's decrease drowns in rounding the slope decides (Hager & Zhang, 2005).
    """
    slope = _dot(direction, state.gradients)
    length, low = torch.ones_like(slope), torch.zeros_like(slope)
    high = torch.full_like(slope, torch.inf)
    points, values, gradients = state.points.clone(), state.values.clone(), state.gradients.clone()
    pending = torch.arange(len(slope), device=slope.device)
    for _ in range(TRIALS):
        t, d = length[pending], slope[pending]
        trial = state.points[pending] + t[:, None] * direction[pending]
        value, gradient = evaluate(state.problem[pending], trial)
        slope_there = _dot(direction[pending], gradient)
        lower = _is_lower(state.values[pending], value, t, d, slope_there)
        flatter = slope_there >= FLATTER * d
        done = lower & flatter
        best = pending[lower]  # lower but still steep is kept too, in case trials run out
        points[best], values[best], gradients[best] = trial[lower], value[lower], gradient[lower]
        high[pending[~lower]], low[best] = t[~lower], t[lower]
        pending = pending[~done]
        if not len(pending):
            break
        bracketed = high[pending].isfinite()
        length[pending] = torch.where(
            bracketed, (low[pending] + high[pending]) / 2, 2 * low[pending]
        )
    failed = (points == state.points).all(dim=1)
    failures = torch.where(failed, state.failures + 1, 0)
    return _State(state.problem, points, values, gradients, failures)


def _is_lower(
    before: Tensor, value: Tensor, length: Tensor, slope: Tensor, slope_there: Tensor
) -> Tensor:
    decrease = value <= before + SUFFICIENT * length * slope
    drowned = value <= before + ROUNDING * before.abs()
    return decrease | (drowned & (slope_there <= (2 * SUFFICIENT - 1) * slope))
