"""No curvature at all: the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.base import Solution


@dataclass(frozen=True, kw_only=True)
class Identity:
    r"""$x = b$: influences become dot products of gradients, the baseline of every comparison.

    The damped curvature as a whole counts as 1, so the damping plays no part. No system is solved,
    and no residual is measured: one would take products with a curvature that nothing else needs.
    """

    def factorize(self, curvature: Curvature) -> "IdentityFactor":
        return IdentityFactor()

    def restore(
        self, tensors: Mapping[str, Tensor], curvature: Curvature | None
    ) -> "IdentityFactor":
        return IdentityFactor()


@dataclass(frozen=True, eq=False)
class IdentityFactor:
    """Nothing to store."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        return Solution(rhs.clone(), {"residual": rhs.new_zeros(len(rhs))})
