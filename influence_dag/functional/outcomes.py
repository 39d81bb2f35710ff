"""What a solve begins with and comes to: refused, or warned of."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_dag.curvature import Curvature
from influence_dag.curvature.finite import all_finite
from influence_dag.errors import NotConvergedError
from influence_dag.solvers.base import Factorization, Solution
from influence_dag.solvers.blocks import BlockFactorization
from influence_dag.solvers.dampings import AutomaticDamping
from influence_dag.solvers.direct import CholeskyFactor
from influence_dag.solvers.eigenbasis import Eigenbasis
from influence_dag.solvers.rounding import rounding


@dataclass(frozen=True, eq=False)
class Solver:
    """A curvature, factorised, and λ with where it comes from."""

    operator: Curvature
    factorization: Factorization
    known: AutomaticDamping

    @property
    def damping(self) -> float:
        return self.known.value

    def solve(self, rhs: Tensor, start: Tensor | None) -> Solution:
        """Raises `NotConvergedError` for solutions that are not finite; warns as `warn` does."""
        solution = self.factorization.solve(rhs, damping=self.damping, x0=start)
        check_finite(solution.x)
        warn_of_negative(self.factorization, self.operator, self.damping, rhs.dtype)
        return solution

    def warn(self, dtype: torch.dtype) -> None:
        """Of negative curvature, where it rules the answer."""
        warn_of_negative(self.factorization, self.operator, self.damping, dtype)


def check_start(start: Tensor, rhs: tuple[int, int]) -> None:
    """`rhs` is the shape of the right-hand sides."""
    if start.shape not in (rhs, (1, rhs[1])):
        raise ValueError(
            f"the first guess has shape {tuple(start.shape)}; wanted one for each of the "
            f"right-hand sides {rhs}, or one for all"
        )


def check_finite(x: Tensor) -> None:
    if not all_finite(x):
        bad = (~x.isfinite().all(1)).nonzero().flatten().tolist()
        raise NotConvergedError(
            "the solutions of right-hand sides {rows} are not finite: the solve overflows; take a "
            "larger damping, scale the columns, or compute in float64",
            rows=bad,
        )


def warn_of_negative(
    factorization: Factorization, operator: Curvature, damping: float, dtype: torch.dtype
) -> None:
    r"""Say where $\lambda$ leaves so little of negative curvature that it rules the answer.

    With $\lambda + \mu_{min} < |\mu_{min}|$ the direction of most negative curvature gets the
    largest weight of all, and it has no more of a claim to it than to its negative. Of a method on
    blocks of parameters each block is a system of its own.
    """
    systems = [("", factorization, operator, damping)]
    if isinstance(factorization, BlockFactorization):
        settings = factorization.settings
        systems = [
            (
                f" of block {name!r}",
                part,
                settings.restricted(operator, settings.blocks[name]),
                settings.damping_of(name, damping),
            )
            for name, part in factorization.parts.items()
        ]
    for named, solved, curvature, lam in systems:
        smallest = _smallest(solved, curvature, lam, dtype)
        if smallest is not None and lam < -2 * smallest:
            warnings.warn(
                f"the smallest eigenvalue{named} is {smallest:.3g}, and the damping {lam:g} leaves "
                f"{smallest + lam:.3g} of it: a damping of {-2 * smallest:.2g} or more, "
                "curvature='gauss_newton' or direct's on_indefinite='absolute' come nearer to what "
                "refits find",
                RuntimeWarning,
                stacklevel=7,
            )


def _smallest(
    factorization: Factorization, operator: Curvature, damping: float, dtype: torch.dtype
) -> float | None:
    """The smallest eigenvalue, if a solve has it and it is negative beyond its rounding."""
    if isinstance(factorization, CholeskyFactor) and damping > 0:
        smallest = factorization.smallest_size - damping
        largest = operator.dense().diagonal().max().item() + damping  # direct solves have it
        size = len(factorization.cholesky)
    elif isinstance(factorization, Eigenbasis) and len(factorization.eigenvalues):
        if factorization.indefinite == "absolute":
            return None
        smallest = factorization.eigenvalues.min().item()
        largest = factorization.eigenvalues.abs().max().item()
        size = len(factorization.eigenvectors)
    else:
        return None
    return smallest if smallest < -rounding(dtype, size) * largest else None
