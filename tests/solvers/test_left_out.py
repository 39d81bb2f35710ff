"""Columns of very different sizes: small eigenvalues that decide the answer are not left out."""

import pytest
import torch
from solver_systems import relative_error

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError
from influence_dag.solvers import Arnoldi, Direct, Nystroem

DAMPING = 0.01
METHODS = {
    "direct": Direct(damping=DAMPING),
    "direct, for several dampings": Direct(),
    "arnoldi": Arnoldi(rank=6, complement="damping"),
    "nystroem": Nystroem(rank=6),
}


def regression(largest, *, zeros=0):
    """H and gradients of a linear regression, whose last column is that large; rotated."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    x = torch.cat([x, x[:, :zeros]], dim=1)
    x[:, 4] *= largest
    x = x @ torch.linalg.qr(torch.randn(len(x.T), len(x.T), generator=generator).double()).Q
    residuals = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    return 2 * x.T @ x / len(x), 2 * residuals * x


def solved(method, H, rhs, dtype):
    factorization = METHODS[method].factorize(DenseCurvature(H.to(dtype)))
    return factorization.solve(rhs.to(dtype), damping=DAMPING).x.double()


@pytest.mark.parametrize("method", METHODS)
def test_what_float32_cannot_tell_from_zero_is_refused_where_it_is_most_of_the_answer(method):
    H, rhs = regression(1e4)
    rhs = rhs[2:]  # without one that has a hundredth of its length there, which is enough
    with pytest.raises(IndefiniteError, match=r"would be lost; use float64 or standardise"):
        solved(method, H, rhs, torch.float32)
    wanted = torch.linalg.solve(H + DAMPING * torch.eye(len(H)), rhs.T).T
    assert relative_error(solved(method, H, rhs, torch.float64), wanted) < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_refused_of_each_row_whatever_its_sign(method, sign):
    H, rhs = regression(1e4)
    for b in rhs[2:6]:
        with pytest.raises(IndefiniteError, match=r"1 of 1 right-hand sides .* would be lost"):
            solved(method, H, sign * b[None], torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_columns_that_others_determine_are_no_loss(method):
    H, rhs = regression(1.0, zeros=1)
    H, rhs = H.float().double(), rhs.float().double()
    wanted = torch.linalg.solve(H + DAMPING * torch.eye(len(H)), rhs.T).T
    assert relative_error(solved(method, H, rhs, torch.float32), wanted) < 1e-3
