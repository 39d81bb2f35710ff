"""A row whose loss has a first derivative and no second one: named, whatever the method does."""

import pytest
import torch
from torch import nn

import influence_dag as idag
from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.curvature.finite import all_finite
from influence_dag.curvature.operators import DenseCurvature
from influence_dag.errors import ModelError
from influence_dag.objective import Objective, Rows

METHODS = {
    "direct": {},
    "cg": {},
    "lissa": {},
    "arnoldi": {"rank": 2},
    "nystroem": {"rank": 2},
    "ekfac": {},
    "kfac": {},
}
BAD = 11


def rooted(output, target):
    """|f|^(3/2), whose second derivative at 0 is infinite, and something convex."""
    f = output - target
    return (f.abs().pow(1.5) + f.square()).sum(1).mean()


def problem():
    """Rows whose outputs are away from their targets, but for one that is hit exactly."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2).double()
    x = torch.randn(20, 3, generator=generator).double()
    with torch.no_grad():
        y = model(x) + torch.randn(20, 2, generator=generator).double()
        y[BAD] = model(x[BAD : BAD + 1])[0]
    loader = [(x[:6], y[:6]), (x[6:], y[6:])]
    return idag.TorchTwiceDifferentiable(model, rooted), loader, [(x[:3], y[:3])]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full", [False, True], ids=["some", "all"])
def test_every_method_names_the_row(method, full):
    model, train, test = problem()
    settings = dict.fromkeys(METHODS[method], 8) if full else METHODS[method]
    with pytest.raises(ModelError, match=f"row {BAD}: the loss has no finite second") as caught:
        idag.compute_influence_factors(
            model,
            train,
            test,
            inversion_method=method,
            hessian_regularization=0.1,
            **settings,
        )
    assert caught.value.row == BAD


@pytest.mark.parametrize("damping", [0.0, "auto"])
def test_so_it_is_without_a_damping_and_with_one_that_is_found(damping):
    model, train, test = problem()
    with pytest.raises(ModelError, match=f"row {BAD}: the loss has no finite second"):
        idag.compute_influences(model, train, test, hessian_regularization=damping)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_products_with_both_curvatures_name_it(curvature):
    model, train, _ = problem()
    b = torch.ones(2, 8, dtype=torch.float64)
    with pytest.raises(ModelError, match=f"row {BAD}: the loss has no finite second"):
        idag.solve_hvp("cg", model, train, b, hessian_perturbation=0.1, curvature=curvature)


@pytest.mark.parametrize("route", ["auto", "autograd"])
@pytest.mark.parametrize("curvature", [Hessian, GaussNewton])
def test_vectors_that_are_too_long_are_no_fault_of_a_row(curvature, route):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    rows = Rows(10 * torch.randn(9, 3), torch.arange(9) % 3)
    operator = curvature(Objective(module, "cross_entropy"), rows, route=route)
    with pytest.raises(ModelError, match=r"entries up to 3\.0e\+38 overflows float32: divide"):
        operator.apply(torch.full((2, operator.size), 3e38))


@pytest.mark.parametrize("curvature", [Hessian, GaussNewton])
def test_a_row_that_nobody_has_looked_at_is_named_in_a_product(curvature):
    model, train, _ = problem()
    x, y = map(torch.cat, zip(*train, strict=True))
    operator = curvature(model.objective, Rows(x, y), checked=True)
    with pytest.raises(ModelError, match=f"row {BAD}: the loss has no finite second"):
        operator.apply(torch.ones(1, operator.size, dtype=torch.float64))


def test_the_other_rows_are_fine():
    model, train, test = problem()
    (x, y), (more, targets) = train
    keep = torch.arange(len(more)) != BAD - 6
    found = idag.compute_influences(
        model, [(x, y), (more[keep], targets[keep])], test, hessian_regularization=0.1
    )
    assert found.isfinite().all()


def test_a_matrix_that_has_no_numbers_is_no_curvature():
    """`torch.linalg.eigh` makes finite eigenvalues of some matrices with NaN in them."""
    matrix = torch.eye(4)
    matrix[2, 2] = torch.nan
    with pytest.raises(ModelError, match="1 of 16 entries are not finite"):
        DenseCurvature(matrix)


@pytest.mark.parametrize("bad", [(), (torch.nan,), (torch.inf, -torch.inf)])
def test_numbers_whose_sum_overflows_are_told_from_none(bad):
    """A finite sum says that its terms are; another says nothing by itself."""
    values = torch.full((5,), torch.finfo(torch.float32).max)
    values[: len(bad)] = torch.tensor(bad)
    assert all_finite(values) == (not bad)
