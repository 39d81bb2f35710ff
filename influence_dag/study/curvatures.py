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


def add_curvature(name: str, kind: CurvatureKind) -> None:
    """Let studies and calls name a curvature: `methods: {direct: {curvature: name}}`.

    Raises `ValueError` for a name that is taken.
    """
    if name in CURVATURE_KINDS:
        raise ValueError(f"the curvature {name!r} exists already")
    CURVATURE_KINDS[name] = kind
