"""What there is to know of each curvature without computing it: names, words, whether it is PSD."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CurvatureKind:
    """`term` is a row's part of the mean over training rows, `symbol` what formulas call it.

    `operator` names the class that applies it, `module:class`: a subclass of `BatchedCurvature`,
    imported when something is computed.
    """

    symbol: str
    term: str
    title: str
    operator: str
    is_semidefinite: bool = False


CURVATURE_KINDS: dict[str, CurvatureKind] = {
    "hessian": CurvatureKind(
        "H", "∇²L(z_i, θ)", "the Hessian", "influence_dag.curvature.hessian:Hessian"
    ),
    "gauss_newton": CurvatureKind(
        "G",
        "J_iᵀ (∂²L/∂output²) J_i",
        "the Gauss–Newton matrix",
        "influence_dag.curvature.gauss_newton:GaussNewton",
        is_semidefinite=True,
    ),
}
"""By the names that settings have for them."""


def rounding_share(eps: float, size: int) -> float:
    r"""The share of $|\mu_1|$ below which an eigenvalue of a p × p curvature counts as zero.

    $\max(8, \sqrt p)$ units of rounding, in float64 $\max(64, 4 \sqrt p)$. Measured on softmax
    regressions, whose curvature has p / C exact zeros: 0.5 units in float32 (rows are summed in
    float64), 4 in float64 at p = 1,000; and 40 in float64 on attention, inside of which
    products that cancel are larger than what is left of them.
    """
    is_double = eps < 1e-12
    return max((64.0, 4 * size**0.5) if is_double else (8.0, size**0.5)) * eps


def add_curvature(name: str, kind: CurvatureKind) -> None:
    """Let studies and calls name a curvature: `methods: {direct: {curvature: name}}`.

    Raises `ValueError` for a name that is taken.
    """
    if name in CURVATURE_KINDS:
        raise ValueError(f"the curvature {name!r} exists already")
    CURVATURE_KINDS[name] = kind
