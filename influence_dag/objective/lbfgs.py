"""Limited-memory BFGS on one vector in float64: the numbers of `torch.optim.LBFGS`, sooner.

torch's own keeps the coefficients of its recursion as tensors, which at a few thousand parameters
takes as long as all gradients, and to make one of its optimizers imports its compiler. Its search
along a line is used as it is.
"""

from collections import deque
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]  # a point → the value there, and its gradient

HISTORY = 60  # pairs: on the digits network 60 reach 1e-6 in half the steps of 20
MOST_EVALUATIONS = 2500  # of one call of `run`
SMALLEST = 1e-15  # slopes, moves and decreases below it lead nowhere
LEAST_CURVATURE = 1e-10  # of a pair that is kept


class LBFGS:
    r"""$\theta \leftarrow \theta - t \, B \, \nabla f(\theta)$, with t by a strong-Wolfe search.

    B approximates the inverse Hessian from the last moves $s$ and the changes $y$ of the gradient
    along them, by the two-loop recursion (Nocedal, 1980). `tolerance` is of the largest entry of
    the gradient. `theta`, `value` and `gradient` are where it stands.
    """

    def __init__(self, evaluate: Evaluate, theta: Float[Tensor, " p"], *, tolerance: float):
        self.theta, self.tolerance, self.steps = theta, tolerance, 0
        self._evaluate = evaluate
        self.value, self.gradient = self._at(theta)
        self._pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=HISTORY)  # s, y, 1 / sᵀy
        self._scale = 1.0

    def run(self, most: int) -> int:
        """Take at most so many steps, fewer at the tolerance or where none leads on. How many?"""
        evaluations = 1
        if self._is_flat:
            return 0
        for step in range(1, most + 1):
            direction, before = self._direction(), self.value
            slope = self.gradient.dot(direction).item()
            first = 1.0 if self.steps else min(1.0, 1.0 / self.gradient.abs().sum().item())
            self.steps += 1
            if slope > -SMALLEST:
                return step
            move, tried = self._search(direction, slope, first, MOST_EVALUATIONS - evaluations)
            evaluations += tried
            if evaluations >= MOST_EVALUATIONS or self._is_flat:
                return step
            if move.abs().max().item() <= SMALLEST or abs(self.value - before) < SMALLEST:
                return step
        return most

    def _at(self, theta: Float[Tensor, " p"]) -> tuple[float, Tensor]:
        value, gradient = self._evaluate(theta)
        return float(value), gradient

    @property
    def _is_flat(self) -> bool:
        return self.gradient.abs().max().item() <= self.tolerance

    def _search(
        self, direction: Float[Tensor, " p"], slope: float, first: float, most: int
    ) -> tuple[Float[Tensor, " p"], int]:
        """Move along a direction, `first` times its length to begin with; count the evaluations."""
        value, gradient, length, tried = _strong_wolfe(
            lambda start, t, d: self._at(start.add(d, alpha=t)),
            *(self.theta, first, direction, self.value, self.gradient, slope),
            max_ls=most,
        )
        move = direction * length
        self._remember(move, gradient - self.gradient)
        self.theta = self.theta.add(direction, alpha=length)
        self.value, self.gradient = value, gradient
        return move, tried

    def _remember(self, s: Float[Tensor, " p"], y: Float[Tensor, " p"]) -> None:
        curvature = y.dot(s).item()
        if curvature > LEAST_CURVATURE:
            self._pairs.append((s, y, 1.0 / curvature))
            self._scale = curvature / y.dot(y).item()

    def _direction(self) -> Float[Tensor, " p"]:
        q, coefficients = self.gradient.neg(), []
        for s, y, inverse in reversed(self._pairs):
            coefficients.append(torch.dot(s, q).item() * inverse)
            q.add_(y, alpha=-coefficients[-1])
        q.mul_(self._scale)
        for s, y, inverse in self._pairs:
            q.add_(s, alpha=coefficients.pop() - torch.dot(y, q).item() * inverse)
        return q
