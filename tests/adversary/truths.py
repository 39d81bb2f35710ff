"""What is right of a case: derivatives by the oracle, at a damping that can be asked for."""

from dataclasses import dataclass

import torch
from adversary import oracle
from adversary.cases import Case
from adversary.data import Draw
from torch import Tensor

_CONDITION = {torch.float64: 1e6, torch.float32: 1e3}  # the worst that is asked for


@dataclass(frozen=True)
class Truth:
    """All that is right of a case, at a damping and a curvature that it chooses."""

    train: oracle.RowDerivatives
    test: oracle.RowDerivatives
    weights: Tensor
    matrix: Tensor
    values: Tensor
    damping: float
    curvature: str
    weight_sum: float

    @property
    def gradients(self) -> Tensor:
        """Those of the training rows, with their weights."""
        return self.weights[:, None] * self.train.gradients

    def mixed(self, name: str) -> Tensor:
        mixed = self.train.mixed[name]
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return self.weights[:, None, None] * mixed

    @property
    def condition(self) -> float:
        shifted = (self.values + self.damping).abs()
        kept = shifted[~oracle.is_zero(self.values)] if self.damping == 0 else shifted
        largest = max(float(self.values.abs().max()), self.damping)
        return largest / float(kept.min()) if len(kept) else 1.0

    @property
    def definite(self) -> bool:
        """Whether the damped matrix is positive definite."""
        return float(self.values.min()) + self.damping > 0

    def factors(self, rhs: Tensor) -> Tensor:
        return oracle.damped_solve(self.matrix, rhs, self.damping)


def truth_of(case: Case) -> Truth:
    """By the oracle; raises `NotImplementedError` where torch has no second derivative."""
    module, x, y = case.module(torch.float64), *case.part(slice(0, case.rows))
    train = oracle.differentiate(module, case.output_of, case.value, x, y, wrt=case.perturbed)
    x, y = case.part(slice(case.rows, None))
    of_test = (lambda f, _: measurement(f)) if case.measurement else case.value
    test = oracle.differentiate(module, case.output_of, of_test, x, y, second=False)
    weights = torch.ones(case.rows) if case.weights is None else case.weights
    return _damped(case, train, test, weights.double())


def measurement(f):
    """A function of the outputs that is not the loss, for one row or for a batch of rows."""
    return torch.tanh(f).square().sum(tuple(range(f.ndim))) + f.sum()


def _damped(case, train, test, weights) -> Truth:
    draw = Draw(case.seed + 1_000_003)
    curvature = draw.one_of("hessian", "hessian", "gauss_newton")
    parts = train.hessians if curvature == "hessian" else train.gauss_newtons
    matrix = oracle.mean(parts, weights)
    if not matrix.isfinite().all():
        return Truth(train, test, weights, matrix, matrix[0], 1.0, curvature, 1.0)
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    damping = _damping(draw, values, case.dtype)
    total = float(weights.sum())
    return Truth(train, test, weights, matrix, values, damping, curvature, total)


def _damping(draw, values, dtype) -> float:
    """Below the largest eigenvalues where that can be solved; 0 where it is clear what is zero."""
    largest, smallest = float(values.abs().max()), float(values.min())
    relative = values.abs() / max(largest, 1e-300)
    clear = not bool(((relative > 1e-13) & (relative < 1e-6)).any())
    if draw.chance(0.15) and dtype == torch.float64 and clear and smallest >= -1e-13 * largest:
        return 0.0
    wanted = draw.one_of(0.01, 0.1, 0.5) * draw.one_of(1.0, float(values.abs().mean()))
    wanted = max(wanted, largest / _CONDITION[dtype], 1e-4)
    return round(wanted if smallest + wanted > wanted / 10 else wanted - 2 * smallest, 10)
