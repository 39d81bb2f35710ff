"""What there is to know of each curvature without computing it: names, words, whether it is PSD."""

from dataclasses import dataclass
from typing import Literal

CurvatureName = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class CurvatureKind:
    """`term` is a row's part of the mean over training rows, `symbol` what formulas call it."""

    symbol: str
    term: str
    title: str
    is_semidefinite: bool = False


CURVATURE_KINDS: dict[str, CurvatureKind] = {
    "hessian": CurvatureKind("H", "∇²L(z_i, θ)", "the Hessian"),
    "gauss_newton": CurvatureKind(
        "G", "J_iᵀ (∂²L/∂output²) J_i", "the Gauss–Newton matrix", is_semidefinite=True
    ),
}
"""By the names that settings have for them; their kernels are in `influence_dag.curvature`."""
