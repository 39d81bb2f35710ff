"""The adversary's oracle against differences of gradients, and closed forms; cases repeat."""

import pytest
import torch
from adversary import oracle
from adversary.cases import FAMILIES, RIGHT, case
from torch import nn
from torch.testing import assert_close


def derivatives(chosen):
    module, x, y = chosen.module(torch.float64), *chosen.part(slice(0, 3))
    return oracle.differentiate(module, chosen.output_of, chosen.value, x, y)


def gradients_at(chosen, theta):
    module = chosen.module(torch.float64)
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta, oracle.parameters(module))
    x, y = chosen.part(slice(0, 3))
    return oracle.differentiate(
        module, chosen.output_of, chosen.value, x, y, second=False
    ).gradients


def first_case(family, note=""):
    numbers = range(list(FAMILIES).index(family), 100_000, len(FAMILIES))
    cases = map(case, numbers)
    return next(c for c in cases if f"({note}" in c.description and c.expect == RIGHT)


@pytest.mark.parametrize(
    ("family", "note"),
    [
        ("chain", ""),
        ("parametrised", "weight_norm)"),
        ("parametrised", "weight_norm conv)"),
        ("parametrised", "weight_norm of the whole)"),
        ("parametrised", "old weight_norm of dim 1)"),
        ("parametrised", "spectral_norm)"),
        ("parametrised", "orthogonal)"),
        ("unrolled", ""),
    ],
)
def test_second_derivatives_are_differences_of_gradients(family, note):
    chosen, step = first_case(family, note), 1e-6
    found = derivatives(chosen).hessians
    parameters = oracle.parameters(chosen.module(torch.float64))
    theta = nn.utils.parameters_to_vector(parameters).detach()
    slopes = [
        (gradients_at(chosen, theta + e) - gradients_at(chosen, theta - e)) / (2 * step)
        for e in step * torch.eye(len(theta), dtype=theta.dtype)
    ]
    differences = torch.stack(slopes, 1)
    assert_close(found, differences, rtol=0, atol=1e-6 * float(found.abs().max()))


def test_a_linear_regression_has_its_closed_form():
    x, y = torch.randn(5, 3).double(), torch.randn(5).double()
    module = nn.Linear(3, 1, bias=False).double()
    found = oracle.differentiate(module, lambda o: o[0], lambda f, t: (f[0] - t).square() / 2, x, y)
    errors = (module(x)[:, 0] - y).detach()
    outer = torch.einsum("ni,nj->nij", x, x)
    assert_close(found.gradients, errors[:, None] * x)
    assert_close(found.hessians, outer)
    assert_close(found.gauss_newtons, outer)
    mixed = torch.einsum("ni,j->nij", x, module.weight[0].detach())
    assert_close(found.mixed[""], mixed + errors[:, None, None] * torch.eye(3).double())


def test_means_and_solves_without_damping_are_the_weighted_and_the_smallest_ones():
    H = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    rhs = torch.tensor([[2.0, 3.0, 0.0]], dtype=torch.float64)
    assert_close(oracle.damped_solve(H, rhs, 0.0), torch.tensor([[1.0, 3.0, 0.0]]).double())
    parts, weights = torch.stack([H, 3 * H]), torch.tensor([3.0, 1.0])
    assert_close(oracle.mean(parts, weights), 1.5 * H)


@pytest.mark.parametrize("seed", [5, 100, 317])
def test_a_number_is_always_the_same_case(seed):
    one, two = case(seed), case(seed)
    assert one.description == two.description
    parameters = [oracle.flat(c.module(torch.float64).parameters()) for c in (one, two)]
    assert_close(*parameters, rtol=0, atol=0)
    for index in range(2):
        leaves = (oracle.leaves(c.part(slice(None))[index]) for c in (one, two))
        assert_close(*leaves, rtol=0, atol=0)
