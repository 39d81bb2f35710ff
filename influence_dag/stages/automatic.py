"""What a curvature says of λ: the λ of `damping: auto`, and what is typical where it is given."""

import torch

from influence_dag.curvature import Curvature, DenseCurvature
from influence_dag.solvers import Factorization
from influence_dag.solvers.blocks import BlockFactorization
from influence_dag.solvers.dampings import AutomaticDamping, automatic_damping, of_eigenvalues
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.curvatures import CURVATURE_KINDS


def of_matrix(bench: Workbench, kind: str) -> tuple[float, ...]:
    """The λ that are added to a stored matrix."""
    if not bench.settings.is_auto_damped:
        return bench.settings.dampings
    return (of_stored_matrix(bench.require(kind), kind).value,)


def settled(bench: Workbench, method: str, operator: Curvature) -> AutomaticDamping | None:
    """With `damping: auto` the λ of a method that is given this curvature, once for each matrix.

    None where the study says λ, or where it is read off what the method makes of the curvature.
    """
    asked = bench.settings.methods[method]
    if not bench.settings.is_auto_damped or asked.of_layers:
        return None
    if not asked.is_damped:
        return AutomaticDamping(0.0, f"{method} has no damping")
    kind = bench.settings.matrix_of_damping(method)
    if kind is not None:
        return of_stored_matrix(bench.require(kind), kind)
    return automatic_damping(
        operator, semidefinite=CURVATURE_KINDS[asked.curvature].is_semidefinite
    )


def typical(
    bench: Workbench, method: str, operator: Curvature, factorization: Factorization
) -> AutomaticDamping | None:
    """What `damping: auto` would take, where it costs a few products at most; None elsewhere."""
    asked = bench.settings.methods[method]
    kind = asked.curvature
    if asked.of_layers:
        return of_factors(factorization)
    if asked.uses_matrix:
        return of_stored_matrix(bench.require(kind), kind)
    if CURVATURE_KINDS[kind].is_semidefinite and asked.is_damped:
        return automatic_damping(operator, semidefinite=True)
    return None


def of_stored_matrix(version: Version, kind: str) -> AutomaticDamping:
    """From the eigenvalues beside the matrix, or from the matrix where it is too large for them."""
    semidefinite = CURVATURE_KINDS[kind].is_semidefinite
    if "eigenvalues" in version.variables and not semidefinite:
        return of_eigenvalues(torch.from_numpy(version.read("eigenvalues")))
    matrix = DenseCurvature(torch.from_numpy(version.read(kind)))
    return automatic_damping(matrix, semidefinite=semidefinite)


def of_factors(factorization: Factorization) -> AutomaticDamping:
    """From the eigenvalues of Kronecker factors, of all blocks together."""
    if not isinstance(factorization, BlockFactorization):
        return factorization.automatic_damping  # pyright: ignore[reportAttributeAccessIssue]
    known = [of_factors(part) for part in factorization.parts.values()]
    sizes = [len(index) for index in factorization.settings.blocks.values()]
    mean = sum(each.value * size for each, size in zip(known, sizes, strict=True)) / sum(sizes)
    return AutomaticDamping(mean, known[0].reason)
