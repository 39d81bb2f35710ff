"""Every method on a real network: the digits MLP, 2,410 parameters, Hessian down to -1e-3."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from scipy.sparse.linalg import eigsh
from scipy.stats import spearmanr
from solver_systems import relative_error
from torch import nn

from influence_dag.curvature import DenseCurvature, GaussNewton, Hessian
from influence_dag.errors import NotConvergedError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Arnoldi, ConjugateGradient, Direct, LiSSA, Nystroem

DAMPING, TESTS = 0.01, 40


@pytest.fixture(scope="module")
def stored():
    path = Path(__file__).parents[1] / "digits_mlp.npz"
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def objective(stored):
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).eval()
    names = {"0.weight": "weight0", "0.bias": "bias0", "2.weight": "weight2", "2.bias": "bias2"}
    module.load_state_dict({name: stored[key] for name, key in names.items()})
    return Objective(module, "cross_entropy")


@pytest.fixture(scope="module")
def train(stored):
    return Rows(stored["x_train"], stored["y_train"].long())


@pytest.fixture(scope="module")
def hessian(objective, train):
    return Hessian(objective, train)


@pytest.fixture(scope="module")
def matrix(hessian):
    return DenseCurvature(hessian.dense())


@pytest.fixture(scope="module")
def eigenpairs(matrix):
    """The 101 of largest magnitude, by another library's Lanczos, their residuals looked at."""
    dense = matrix.matrix.double()
    values, vectors = map(torch.from_numpy, eigsh(dense.numpy(), k=101, which="LM", v0=start()))
    assert (dense @ vectors - vectors * values).norm() <= 1e-10
    return values, vectors


def start():
    return np.random.default_rng(0).normal(size=2410)


@pytest.fixture(scope="module")
def rhs(objective, stored):
    test = Rows(stored["x_test"][:TESTS], stored["y_test"][:TESTS].long())
    return per_sample_gradients(objective, test).dense()


@pytest.fixture(scope="module")
def gradients(objective, train):
    return per_sample_gradients(objective, train).dense()


@pytest.fixture(scope="module")
def exact(matrix, rhs):
    return reference.damped_solve(matrix.matrix, rhs, DAMPING)


@pytest.fixture(scope="module")
def spearman(gradients, exact):
    """Mean over test rows of the rank correlation with the exact influences."""

    def measure(factors):
        found, expected = (rows.double() @ gradients.T.double() for rows in (factors, exact))
        pairs = zip(found.numpy(), expected.numpy()[: len(found)], strict=True)
        return np.mean([spearmanr(a, b).statistic for a, b in pairs])

    return measure


def test_direct_agrees_with_another_library(matrix, rhs, gradients, stored):
    factors = Direct(damping=DAMPING).factorize(matrix).solve(rhs, damping=DAMPING).x
    theirs = stored["pydvl_direct_factors"].double()
    assert relative_error(factors[: len(theirs)], theirs) <= 5e-6
    expected = stored["pydvl_direct_influences"][:TESTS].double()
    assert relative_error(factors @ gradients.T, expected) <= 5e-6


@pytest.mark.parametrize("preconditioner", ["nystroem", "ekfac", "none"])
def test_cg_agrees_with_the_exact_solve(preconditioner, hessian, rhs, exact):
    method = ConjugateGradient(preconditioner=preconditioner)
    factorization = method.factorize(hessian)
    x = factorization.solve(rhs[:3], damping=DAMPING).x
    assert relative_error(x, exact[:3]) <= 1e-4
    restored = method.restore(factorization.tensors(), hessian)
    again = restored.solve(rhs[:3], damping=DAMPING).x
    torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-6)


def test_preconditioned_cg_takes_a_third_of_the_iterations(matrix, rhs):
    def iterations(name):
        system = ConjugateGradient(rtol=1e-4, preconditioner=name).factorize(matrix)
        return int(system.solve(rhs, damping=DAMPING).info["niter"].max())

    assert iterations("nystroem") <= 10
    assert iterations("none") >= 25


@pytest.fixture(scope="module")
def ggn(objective, train):
    """The Hessian is indefinite at small dampings, the Gauss-Newton matrix of one layer is not."""
    last = slice(2080, 2410)
    return GaussNewton(objective, train).dense()[last, last].double()


@pytest.mark.parametrize("damping", [1e-3, 1e-4])
@pytest.mark.parametrize(
    "method",
    [
        Direct(),
        ConjugateGradient(rtol=1e-8),
        ConjugateGradient(rtol=1e-8, preconditioner="none"),
        LiSSA(rtol=1e-7, maxiter=200_000),
    ],
    ids=["direct", "cg", "cg-plain", "lissa"],
)
def test_small_dampings_on_the_leading_layer(method, damping, ggn):
    b = torch.randn(3, len(ggn), dtype=torch.float64) @ ggn  # what gradients look like: in range
    x = method.factorize(DenseCurvature(ggn)).solve(b, damping=damping).x
    assert relative_error(x, reference.damped_solve(ggn, b, damping)) <= 1e-3


@pytest.mark.parametrize(
    ("method", "least"),
    [
        (Arnoldi(rank=100, complement="damping"), 0.88),
        (Nystroem(rank=100), 0.80),
        (Nystroem(rank=100, power_iterations=0), 0.73),
        (LiSSA(), 0.999),
    ],
    ids=["arnoldi", "nystroem", "nystroem-published", "lissa"],
)
def test_rankings_resemble_the_exact_ones(method, least, matrix, rhs, spearman):
    some = rhs[:10] if isinstance(method, LiSSA) else rhs  # its thousands of steps are slow
    factors = method.factorize(matrix).solve(some, damping=DAMPING).x
    assert spearman(factors) >= least


def test_dropping_the_complement_costs_most_of_the_ranking(matrix, rhs, spearman):
    def measure(complement):
        basis = Arnoldi(rank=50, complement=complement).factorize(matrix)
        return spearman(basis.solve(rhs, damping=DAMPING).x)

    assert measure("drop") <= 0.5
    assert measure("damping") >= 0.7


def test_dropped_as_published_arnoldi_ranks_as_the_exact_eigenpairs_do(
    matrix, eigenpairs, rhs, spearman
):
    """0.69 at rank 100: what is lost is the complement, not the accuracy of the pairs."""
    found = Arnoldi(rank=100).factorize(matrix).solve(rhs, damping=DAMPING).x
    values, vectors = eigenpairs
    leading = values.abs().argsort(descending=True)[:100]
    V, b = vectors[:, leading], rhs.double()
    exact_pairs = ((b @ V) / (values[leading] + DAMPING)) @ V.T
    assert relative_error(found, exact_pairs) <= 1e-3
    assert 0.67 <= spearman(found) <= 0.71
    kept = exact_pairs + (b - (b @ V) @ V.T) / DAMPING
    assert spearman(kept) >= 0.88


def test_the_scale_that_a_diverging_series_names_converges(matrix, rhs, spearman):
    with pytest.raises(NotConvergedError, match=r"diverges with scale=0\.4: .* use scale=") as told:
        LiSSA(scale=0.4).factorize(matrix).solve(rhs[:3], damping=DAMPING)
    scale = float(str(told.value).rpartition("scale=")[2])
    x = LiSSA(scale=scale).factorize(matrix).solve(rhs[:3], damping=DAMPING).x
    assert spearman(x) >= 0.99


def test_arnoldi_pairs_are_those_of_a_dense_decomposition(matrix, eigenpairs):
    basis = Arnoldi(rank=50).factorize(matrix)
    V = basis.eigenvectors.double()
    assert (V.T @ V - torch.eye(50)).abs().max() <= 1e-5
    values, _ = eigenpairs
    torch.testing.assert_close(basis.eigenvalues.double(), values.flip(0)[:50], rtol=0, atol=2e-6)
    share = values.flip(0)[:50].square().sum() / values.square().sum()
    assert basis.info["captured"] == pytest.approx(share.item(), abs=2e-3)
    assert basis.info["left_out"] == pytest.approx(values.flip(0)[50].item(), rel=0.2)
