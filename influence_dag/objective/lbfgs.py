r"""Limited-memory BFGS with a strong-Wolfe line search (Nocedal, 1980; Moré & Thuente, 1994).

The steps are those of `torch.optim.LBFGS` to the last bit, for one vector: they are written out
here because the first optimizer that torch makes imports its compiler, which takes longer than a
small fit, and because a step of it costs as much as a gradient of a small network.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

from jaxtyping import Float
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]  # θ → value, gradient
Length: TypeAlias = float | Tensor  # torch divides a number by a tensor in another way: bits differ

SUFFICIENT, FLATTER = 1e-4, 0.9  # of the Wolfe conditions
LEAST_CHANGE = 1e-15  # of θ, of the value and of the slope: less is no progress
LEAST_BRACKET = 1e-9  # of θ, between two points of a line search
LEAST_CURVATURE = 1e-10  # of a pair that is kept
TRIALS = 2500  # evaluations of a run


class Pair(NamedTuple):
    """What a step has shown of the curvature: by how much the gradient changed, and θ."""

    change: Tensor
    step: Tensor
    inverse: Tensor  # 1 / changeᵀ step


class Trial(NamedTuple):
    """A point of a line: how far it is, the value, the gradient and the slope there."""

    length: Length
    value: float
    gradient: Tensor
    slope: Tensor


class Lbfgs:
    """A search for a minimum from θ: where it is, and what it remembers of its last steps."""

    def __init__(
        self, evaluate: Evaluate, theta: Float[Tensor, " p"], *, history: int, tolerance: float
    ):
        self._evaluate, self.theta = evaluate, theta
        value, self.gradient = evaluate(theta)
        self.value = float(value)
        self._tolerance = tolerance  # of the gradient's largest entry
        self._pairs: deque[Pair] = deque(maxlen=history)
        self._scale: Length = 1.0
        self._last: tuple[Tensor, Tensor] | None = None  # the gradient before, the step since

    @property
    def is_done(self) -> bool:
        return float(self.gradient.abs().max()) <= self._tolerance

    def run(self, most: int) -> int:
        """At most so many steps; how many were taken, fewer where there is no progress."""
        taken, trials = 0, TRIALS - 1
        while taken < most and trials > 0 and not self.is_done:
            taken += 1
            used = self._step(trials)
            if not used:
                break
            trials -= used
        return taken

    def _step(self, trials: int) -> int:
        """How many points were tried, 0 where it led to nothing."""
        direction = self._direction()
        length = 1.0 if self._last else min(1.0, 1.0 / self.gradient.abs().sum())
        start = Trial(0, self.value, self.gradient, self.gradient.dot(direction))
        self._last = self.gradient, direction.mul(length)
        if start.slope > -LEAST_CHANGE:
            return 0
        x, used = self.theta, 0

        def at(length: Any) -> Trial:
            nonlocal used
            used += 1
            value, gradient = self._evaluate(x.add(direction, alpha=length))
            return Trial(length, float(value), gradient, gradient.dot(direction))

        found = strong_wolfe(at, start, length, direction.abs().max(), trials)
        step, along = direction.mul(found.length), cast(float, found.length)
        self.theta = x.add(direction, alpha=along)
        self.value, self.gradient, self._last = found.value, found.gradient, (start.gradient, step)
        stuck = float(step.abs().max()) <= LEAST_CHANGE
        return 0 if stuck or abs(self.value - start.value) < LEAST_CHANGE else used

    def _direction(self) -> Float[Tensor, " p"]:
        """Minus the approximate inverse Hessian times the gradient, by the two-loop product."""
        self._remember()
        q, coefficients = self.gradient.neg(), []
        for change, step, inverse in reversed(self._pairs):
            coefficients.append(step.dot(q) * inverse)
            q.add_(change, alpha=-coefficients[-1])
        r = q.mul(self._scale)
        for (change, step, inverse), coefficient in zip(
            self._pairs, reversed(coefficients), strict=True
        ):
            r.add_(step, alpha=coefficient - change.dot(r) * inverse)
        return r

    def _remember(self) -> None:
        """Keep what the last step has shown, where it met positive curvature."""
        if self._last is None:
            return
        before, step = self._last
        change = self.gradient.sub(before)
        curvature = change.dot(step)
        if curvature > LEAST_CURVATURE:
            self._pairs.append(Pair(change, step, 1.0 / curvature))
            self._scale = curvature / change.dot(change)


def strong_wolfe(
    at: Callable[[Length], Trial], start: Trial, length: Length, size: Tensor, most: int
) -> Trial:
    """A point of a line at which the value is lower and flat enough, after `most` trials at most.

    `length` is tried first; `size` is the largest entry of the line's direction.
    """
    bracket, used = _bracketed(at, start, length, most)
    low, high = (0, 1) if bracket[0].value <= bracket[-1].value else (1, 0)
    done, stalled = len(bracket) == 1, False
    while not done and used < most:
        if abs(bracket[1].length - bracket[0].length) * size < LEAST_BRACKET:
            break
        length, stalled = _inside(bracket, stalled)
        trial, used = at(length), used + 1
        if _is_too_high(trial, start) or trial.value >= bracket[low].value:
            bracket[high] = trial
            low, high = (0, 1) if bracket[0].value <= bracket[1].value else (1, 0)
            continue
        done = _is_flat(trial, start)
        if not done and trial.slope * (bracket[high].length - bracket[low].length) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = trial
    return bracket[low]


def _bracketed(
    at: Callable[[Length], Trial], start: Trial, length: Length, most: int
) -> tuple[list[Trial], int]:
    """Two points with one between them that is wanted, or the wanted one; trials after the first.

    Each is farther than the one before, to where the value rises.
    """
    before, trial = start, at(length)
    for tried in range(most):
        rises = tried > 1 and trial.value >= before.value
        if _is_too_high(trial, start) or rises:
            return [before, trial], tried
        if _is_flat(trial, start):
            return [trial], tried
        if trial.slope >= 0:
            return [before, trial], tried
        nearest = trial.length + 0.01 * (trial.length - before.length)
        farther = _cubic(before, trial, nearest, trial.length * 10)
        before, trial = trial, at(farther)
    return [start, trial], most


def _inside(bracket: list[Trial], stalled: bool) -> tuple[Length, bool]:
    """Where to try next in a bracket: not twice in turn in the outer tenths of it."""
    lengths = [each.length for each in bracket]
    least, largest = min(lengths), max(lengths)
    length = _cubic(bracket[0], bracket[1], least, largest)
    margin = 0.1 * (largest - least)
    if not min(largest - length, length - least) < margin:
        return length, False
    if not (stalled or length >= largest or length <= least):
        return length, True
    nearer_end = abs(length - largest) < abs(length - least)
    return (largest - margin if nearer_end else least + margin), False


def _is_too_high(trial: Trial, start: Trial) -> bool:
    return bool(trial.value > start.value + SUFFICIENT * trial.length * start.slope)


def _is_flat(trial: Trial, start: Trial) -> bool:
    return bool(abs(trial.slope) <= -FLATTER * start.slope)


def _cubic(a: Trial, b: Trial, least: Length, largest: Length) -> Length:
    """The minimum of the cubic through two points with their slopes, within bounds."""
    first = a.slope + b.slope - 3 * (a.value - b.value) / (a.length - b.length)
    square = first**2 - a.slope * b.slope
    if not square >= 0:
        return (least + largest) / 2.0
    root = square.sqrt()
    if a.length > b.length:
        a, b = b, a
    share = (b.slope + root - first) / (b.slope - a.slope + 2 * root)
    return min(max(b.length - (b.length - a.length) * share, least), largest)
