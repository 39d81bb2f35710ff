"""Influences on test rows by a shorter way than factors that a solve writes out."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from influence_dag.functional.outcomes import check_finite
from influence_dag.gradients.per_sample import Gradients
from influence_dag.influence.upweighting import influences
from influence_dag.objective.objective import without_denormal_entries
from influence_dag.solvers.base import Factorization, LowRank
from influence_dag.solvers.eigenbasis import Eigenbasis
from influence_dag.solvers.ekfac import KroneckerFactorization
from influence_dag.solvers.identity import IdentityFactor
from influence_dag.solvers.kronecker_scores import RotatedGradients, pays_to_rotate

Kernel: TypeAlias = Callable[[Gradients], Tensor]


def shortcut(
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
