"""The λ of each method's solves: the study's, or with `damping: auto` what its curvature says."""

import numpy as np
import torch

from influence_dag.curvature import Curvature
from influence_dag.fingerprints import Keys, as_keys, fingerprint
from influence_dag.solvers import Factorization
from influence_dag.solvers.blocks import BlockFactorization
from influence_dag.solvers.dampings import AutomaticDamping, automatic_damping, of_eigenvalues
from influence_dag.stages import naming
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate, Version
from influence_dag.study.curvatures import CURVATURE_KINDS


def of_method(bench: Workbench, method: str) -> tuple[float, ...]:
    """One λ or several; an automatic one as it was settled with the method's curvature."""
    if not bench.settings.is_auto_damped:
        return bench.settings.dampings
    return (bench.require(naming.curvature(method)).attrs["automatic_damping"],)


def told(bench: Workbench, method: str) -> dict[str, str]:
    """Where λ comes from, in words, for attributes; nothing where the study says it."""
    if not bench.settings.is_auto_damped:
        return {}
    return {"damping_reason": bench.require(naming.curvature(method)).attrs["damping_reason"]}


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
    from influence_dag.curvature import DenseCurvature

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


def damping_digests(bench: Workbench) -> list[Keys]:
    """What distinguishes the blocks of a damping sweep; with one λ there is no such axis."""
    known = bench.settings.dampings
    return [as_keys([fingerprint(value) for value in known])] if len(known) > 1 else []


def damping_axis(
    bench: Workbench, method: str
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[Coordinate, ...]]:
    """Leading dims, their sizes and coordinates: empty with one λ."""
    known = bench.settings.dampings
    if len(known) <= 1:
        return (), (), ()
    about = {"long_name": wording_of(bench, method).damping_axis}
    values = Coordinate("damping", ("damping",), np.array(known), about)
    return ("damping",), (len(known),), (values,)
