"""Influences on test rows by a shorter way than factors that a solve writes out."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from influence_dag.functional.outcomes import check_finite
from influence_dag.gradients.per_sample import (
    GradientLayout,
    Gradients,
    gradient_layout,
    per_sample_gradients,
)
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.influence.upweighting import influences
from influence_dag.objective.objective import Objective, Rows, without_denormal_entries
from influence_dag.solvers.base import Factorization, LowRank
from influence_dag.solvers.eigenbasis import Eigenbasis
from influence_dag.solvers.ekfac import KroneckerFactorization
from influence_dag.solvers.identity import IdentityFactor
from influence_dag.solvers.kronecker_scores import RotatedGradients, pays_to_rotate

if TYPE_CHECKING:
    from influence_dag.functional.inversion import Inversion

Kernel: TypeAlias = Callable[[Gradients], Tensor]


def kernel(
    inversion: "Inversion",
    objective: Objective,
    train: Rows,
    test: Rows,
    *,
    rows: int,
    batch: int | None = None,
) -> tuple[Kernel, GradientLayout]:
    """What makes influences on the test rows of the gradients of so many `rows`.

    And the layout that the test rows' own gradients have. Of the solve nothing is told; it
    raises and warns as `Inversion.factors` does.
    """
    precise, train, test = inversion.checked(objective, train, test)
    measured = _measured_as(gradient_layout(precise, train), precise, test)
    solver = inversion.solver(precise, train, len(test), batch)
    if precise.dtype == objective.dtype:
        found = _shortcut(solver.factorization, measured, damping=solver.damping, rows=rows)
        if found is not None:
            solver.warn(objective.dtype)
            return found, measured.layout
    x = solver.solve(measured.dense(), inversion.start).x.to(objective.dtype)
    check_finite(x)
    return partial(influences, without_denormal_entries(x)), measured.layout


def _measured_as(layout: GradientLayout, objective: Objective, test: Rows) -> Gradients:
    """Gradients of what is measured, in the layout of other rows if it serves: one less to find."""
    with suppress(NotCaptured):
        return per_sample_gradients(objective, test, layout=layout, of="measurement")
    return per_sample_gradients(objective, test, of="measurement")


def _shortcut(
    factorization: Factorization, test: Gradients, *, damping: float, rows: int
) -> Kernel | None:
    """Influences on the test rows as a function of the gradients of `rows` others, if there is one.

    Raises what a solve would.
    """
    if isinstance(factorization, IdentityFactor):
        return test.products
    if isinstance(factorization, Eigenbasis) and not factorization.is_square:
        rhs = test.dense()
        if rhs.dtype == factorization.eigenvectors.dtype:  # all pairs are found in float64
            low_rank = factorization.low_rank(rhs, damping=damping)
            check_finite(low_rank.coordinates)
            return partial(_of_low_rank, low_rank, test)
    if isinstance(factorization, KroneckerFactorization):
        if pays_to_rotate(test, rows):
            return partial(_in_eigenbasis, factorization, test, damping)
        factors = RotatedGradients.of(factorization, test).solved(damping=damping)
        check_finite(factors)
        return partial(influences, without_denormal_entries(factors))
    return None


def _of_low_rank(low_rank: LowRank, test: Gradients, rows: Gradients) -> Tensor:
    r"""$(c \, g_{test} + Y V^\top) \cdot g_i$: 2 r numbers a pair instead of 2 p.

    Of a layer's pairs $g_{test} \cdot g_i$ is a product of two products of vectors.
    """
    found = low_rank.coordinates @ rows.inner(low_rank.eigenvectors.T.contiguous())
    return found.add_(test.products(rows), alpha=low_rank.share) if low_rank.share else found


def _in_eigenbasis(
    factorization: KroneckerFactorization, test: Gradients, damping: float, rows: Gradients
) -> Tensor:
    return RotatedGradients.of(factorization, rows).influences(test, damping=damping)
