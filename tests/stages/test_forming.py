"""Iterative solves of a study on the matrix where their products would cost more than it does."""

import numpy as np
import pytest

from influence_dag.curvature import DenseCurvature, Hessian
from influence_dag.solvers import Arnoldi, ConjugateGradient, forming
from influence_dag.stages import curvature, solving
from influence_dag.stages.blocks import Tile
from influence_dag.stages.methods import load_operator

NAMES = ("influence_factors", "residual", "niter", "converged")


@pytest.fixture
def products(monkeypatch):
    """How many vectors the Hessian of the rows was multiplied with."""
    seen, apply = [], Hessian.apply

    def counted(self, vectors):
        seen.append(len(vectors))
        return apply(self, vectors)

    monkeypatch.setattr(Hessian, "apply", counted)
    return seen


def solved(project, *, start):
    """The factors of all test rows by `cg`, from nothing or from what is stored."""
    bench = project.bench()
    compute = solving.SolvesOfRows("cg", NAMES).at(bench)
    if not start:
        compute._stored = None  # pyright: ignore[reportAttributeAccessIssue]
    tile = Tile((0, 0), (1, len(bench.axis("dataset", "test"))), ())
    return compute(tile)["influence_factors"]


def test_solves_take_no_products_where_the_matrix_costs_less(
    finished_project, products, monkeypatch
):
    on_matrix = solved(finished_project, start=False)
    assert products == []
    monkeypatch.setattr(forming, "worth_forming", lambda *_, **__: False)
    by_products = solved(finished_project, start=False)
    assert products
    np.testing.assert_allclose(on_matrix, by_products, rtol=1e-7, atol=1e-9)


def test_no_matrix_is_formed_for_rows_whose_factors_are_stored(finished_project, monkeypatch):
    asked = []
    monkeypatch.setattr(forming, "worth_forming", lambda *_, rows, **__: asked.append(rows))
    solved(finished_project, start=True)
    assert asked == [0]


def test_a_search_for_eigenpairs_is_on_the_matrix_where_that_costs_less(finished_project):
    operator = load_operator(finished_project.bench(), "cg")
    assert isinstance(curvature._worked_on(operator, Arnoldi(rank=7)), DenseCurvature)
    assert curvature._worked_on(operator, Arnoldi(rank=1)) is operator
    assert curvature._worked_on(operator, ConjugateGradient(rank=8)) is operator
