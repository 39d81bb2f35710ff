"""Curvature matrices against curvlinops; skipped where it is not installed (extra `oracles`).

Its conventions are ours: means over rows, weights row-major, biases after weights. Its K-FAC of a
convolution is the "expand" form, its type-2 Fisher the Gauss-Newton matrix.
"""

import pytest
import torch
from networks import CASES
from torch import nn

from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC

curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)

FISHERS = {"exact": "type-2", "empirical": "empirical"}


@pytest.fixture(params=["mlp", "images", "signal"])
def problem(request):
    """An objective with its rows, and what curvlinops wants to know of them."""
    module, x, y = CASES[request.param].make()
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    theirs = module, nn.CrossEntropyLoss(), list(module.parameters()), batches
    return Objective(module, "cross_entropy"), Rows(x, y), theirs


def identity(objective):
    return torch.eye(objective.size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "name"),
    [(Hessian, "HessianLinearOperator"), (GaussNewton, "GGNLinearOperator")],
    ids=["hessian", "gauss-newton"],
)
def test_matrices_are_those_of_curvlinops(ours, name, problem):
    objective, rows, theirs = problem
    expected = getattr(curvlinops, name)(*theirs) @ identity(objective)
    torch.testing.assert_close(ours(objective, rows).dense(), expected)
    torch.testing.assert_close(ours(objective, rows).apply(identity(objective)), expected)


@pytest.mark.parametrize("problem", ["mlp", "images"], indirect=True)  # it has no Conv1d
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize(
    ("ours", "name"), [(KFAC, "KFACLinearOperator"), (EKFAC, "EKFACLinearOperator")], ids=str
)
def test_kronecker_factors_are_those_of_curvlinops(ours, name, fisher, problem):
    objective, rows, theirs = problem
    operator = getattr(curvlinops, name)(
        *theirs, fisher_type=FISHERS[fisher], separate_weight_and_bias=False
    )
    factors = ours(fisher=fisher).factorize(GaussNewton(objective, rows))
    inverse = factors.solve(identity(objective), damping=1.0).x
    matrix = torch.linalg.inv(inverse) - identity(objective)
    torch.testing.assert_close(matrix, operator @ identity(objective), rtol=1e-7, atol=1e-10)
