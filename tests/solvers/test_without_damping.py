"""Curvatures that are singular to rounding: which eigenvalues are zero, which b have an answer."""

from dataclasses import replace

import pytest
import torch
from solver_systems import random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError, NotConvergedError
from influence_dag.solvers import Arnoldi, ConjugateGradient, Direct, Nystroem
from influence_dag.solvers.dampings import automatic_damping
from influence_dag.solvers.forming import worth_forming

P, RANK = 40, 25
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def singular(dtype=torch.float64, *, seed=0):
    """Rank 25 of 40 with condition 50, symmetric rounding of the dtype's size elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(P, P, generator=generator, dtype=torch.float64))
    values = torch.zeros(P, dtype=torch.float64)
    values[:RANK] = torch.linspace(1.0, 0.02, RANK, dtype=torch.float64)
    noise = torch.randn(P, P, generator=generator, dtype=torch.float64)
    H = (Q * values) @ Q.T + 0.1 * torch.finfo(dtype).eps * (noise + noise.T)
    return ((H + H.T) / 2).to(dtype), Q[:, :RANK], values[:RANK]


METHODS = {
    "direct": Direct(damping=0.0),
    "direct, late": Direct(),
    "direct, lu": Direct(damping=0.0, on_indefinite="lu"),
    "direct, absolute": Direct(damping=0.0, on_indefinite="absolute"),
    "cg": ConjugateGradient(),
    "cg, all pairs": ConjugateGradient(rank=P),
    "cg, none": ConjugateGradient(preconditioner="none"),
    "cg, jacobi": ConjugateGradient(preconditioner="jacobi"),
    "nystroem": Nystroem(rank=P),
    "nystroem, above the rank": Nystroem(rank=RANK + 5),
    "arnoldi": Arnoldi(rank=P),
}


@DTYPES
@pytest.mark.parametrize("damping", [0.0, 1e-30], ids=["none", "too little"])
@pytest.mark.parametrize("name", METHODS)
def test_the_answer_is_the_one_of_least_norm(name, damping, dtype):
    H, V, values = singular(dtype)
    rhs = (random_rhs(3, RANK) @ V.T).to(dtype)
    method = METHODS[name]
    if getattr(method, "damping", None) is not None:
        method = replace(method, damping=damping)
    curvature = DenseCurvature(H)
    factorization = method.factorize(curvature)
    solution = factorization.solve(rhs, damping=damping)
    expected = (rhs.double() @ V / values) @ V.T
    assert relative_error(solution.x, expected) <= (1e-5 if dtype == torch.float64 else 1e-4)
    if not name.startswith("cg"):
        assert solution.info["rank"] == RANK
    restored = method.restore(factorization.tensors(), curvature)
    assert torch.equal(restored.solve(rhs, damping=damping).x, solution.x)


@DTYPES
@pytest.mark.parametrize("name", ["direct", "direct, late", "direct, absolute", "nystroem"])
def test_a_right_hand_side_outside_the_range_is_refused_with_numbers(name, dtype):
    H, V, _ = singular(dtype)
    rhs = random_rhs(3, RANK) @ V.T
    rhs[1] += 0.1 * rhs[1].norm() * torch.linalg.qr(V, mode="complete").Q[:, -1]
    factorization = METHODS[name].factorize(DenseCurvature(H))
    with pytest.raises(IndefiniteError, match=r"15 of 40 eigenvalues .* 1 of 3 .*\(rows 1\)") as it:
        factorization.solve(rhs.to(dtype), damping=0.0)
    assert ("float64" in str(it.value)) == (dtype == torch.float32)
    assert it.value.suggested_damping < 1e-3


def test_cg_outside_the_range_stops_soon_and_says_which_rows():
    H, V, _ = singular()
    rhs = random_rhs(3, RANK) @ V.T
    rhs[1] = random_rhs(1, P)[0]
    with pytest.raises(NotConvergedError, match=r"rows 1;"):
        ConjugateGradient().factorize(DenseCurvature(H)).solve(rhs, damping=0.0)
    kept = ConjugateGradient(on_failure="warn").factorize(DenseCurvature(H))
    with pytest.warns(RuntimeWarning):
        info = kept.solve(rhs, damping=0.0).info
    assert info["converged"].tolist() == [True, False, True]
    assert info["niter"].max() <= 1000


def test_rounding_is_told_from_negative_curvature():
    H, *_ = singular(torch.float32)
    rhs = random_rhs(1, P).float()
    with pytest.raises(IndefiniteError, match="use float64 or standardise the columns") as it:
        Direct(damping=0.0).factorize(DenseCurvature(H)).solve(rhs, damping=0.0)
    assert "damping >=" not in str(it.value)
    with pytest.raises(IndefiniteError, match=r"use damping >= 0\.21? "):
        Direct(damping=0.0).factorize(DenseCurvature(H - 0.1 * torch.eye(P)))


def test_negative_eigenvalues_count_by_their_size():
    H = spd_matrix(P, decay=0.1) - 0.3 * torch.eye(P, dtype=torch.float64)
    rhs = random_rhs(3, P)
    values, V = torch.linalg.eigh(H)
    for damping in (0.01, 0.3, 2.0):
        for method in (
            Direct(on_indefinite="absolute"),
            Direct(damping=damping, on_indefinite="absolute"),
        ):
            factorization = method.factorize(DenseCurvature(H))
            solution = factorization.solve(rhs, damping=damping)
            expected = (rhs @ V / (values.abs() + damping)) @ V.T
            assert relative_error(solution.x, expected) <= 1e-10
            assert solution.info["residual"].max() <= 1e-12


@pytest.mark.parametrize(
    "method", [Nystroem(rank=200), Arnoldi(rank=200)], ids=["nystroem", "arnoldi"]
)
def test_all_pairs_in_single_precision_are_those_of_the_matrix(method):
    H = spd_matrix(120, decay=0.11)  # condition 5e5
    rhs = random_rhs(4, 120).float()
    x = method.factorize(DenseCurvature(H.float())).solve(rhs, damping=0.0).x
    expected = torch.linalg.solve(H.float().double(), rhs.double().T).T
    assert relative_error(x, expected) <= 1e-5


def test_a_flat_curvature_has_all_its_pairs():
    H = torch.eye(300) + 1e-6 * spd_matrix(300).float()
    basis = Arnoldi(rank=300).factorize(DenseCurvature(H))
    assert basis.diagnostics["residuals"].max() <= 1e-10


class Products:
    """A curvature that is only multiplied with."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix):
        self.matrix, self.size = matrix, len(matrix)

    def apply(self, vectors):
        return vectors @ self.matrix

    def dense(self):
        return self.matrix


def test_an_automatic_damping_is_the_mean_size_of_the_eigenvalues():
    H = spd_matrix(200, decay=0.02) - 0.1 * torch.eye(200, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(H).abs().mean().item()
    assert automatic_damping(DenseCurvature(H), semidefinite=False).value == pytest.approx(expected)
    estimated = automatic_damping(Products(H), semidefinite=False)
    assert estimated.value == pytest.approx(expected, rel=0.15)
    assert "estimated" in estimated.reason
    G = spd_matrix(200, decay=0.02)
    trace = G.diagonal().mean().item()
    assert automatic_damping(DenseCurvature(G), semidefinite=True).value == pytest.approx(trace)
    assert automatic_damping(Products(G), semidefinite=True).value == pytest.approx(trace, rel=0.15)


@pytest.mark.parametrize("semidefinite", [True, False])
def test_an_automatic_damping_of_few_parameters_is_no_estimate(semidefinite):
    """A few products say the trace of three directions among twenty to a third."""
    G = torch.full((20, 20), 1.0, dtype=torch.float64) + 0.01 * torch.eye(20).double()
    H = G if semidefinite else G - 2 * torch.diag((torch.arange(20) == 3).double())
    found = automatic_damping(Products(H), semidefinite=semidefinite)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(H).abs().mean().item())
    assert "estimated" not in found.reason


@pytest.mark.parametrize("damping", [0.0, 1e-9])
@pytest.mark.parametrize(
    "method", [Direct(), Direct(damping=0.0), Arnoldi(rank=20), Nystroem(rank=20)], ids=repr
)
@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_a_curvature_is_not_divided_by_for_rows_of_more_digits(method, damping, seed):
    rows = random_rhs(50, 20, seed=seed)
    rows[:, 10:] = 3 * rows[:, :10]
    H, rhs = rows.T @ rows / 50, random_rhs(3, 50) @ rows / 50
    if getattr(method, "damping", None) is not None:
        method = replace(method, damping=damping)
    curvature = DenseCurvature(H.float())
    factorization = method.factorize(curvature)
    restored = method.restore(factorization.tensors(), curvature)
    for each in (factorization, restored):
        found = each.solve(rhs, damping=damping).x
        assert relative_error(found, rhs @ torch.linalg.pinv(H, rtol=1e-10)) <= 1e-4


@pytest.mark.parametrize("make", [DenseCurvature, Products])
def test_an_automatic_damping_is_never_negative(make):
    """As the trace of a Gauss-Newton matrix is where the loss is not convex in the outputs."""
    assert automatic_damping(make(-torch.eye(3).double()), semidefinite=True).value == 0


def test_a_matrix_is_formed_where_the_products_would_cost_more():
    few = {"size": 1000, "damping": 0.1}
    assert not worth_forming(ConjugateGradient(), rows=1, **few)
    assert worth_forming(ConjugateGradient(), rows=100, **few)
    assert worth_forming(ConjugateGradient(), rows=1, size=1000, damping=0.0)
    assert not worth_forming(ConjugateGradient(preconditioner="ekfac"), rows=100, **few)
    assert not worth_forming(ConjugateGradient(), rows=10_000, size=5000, damping=0.1)


@DTYPES
@pytest.mark.parametrize(
    "name", ["direct", "direct, late", "cg", "cg, all pairs", "cg, none", "nystroem"]
)
def test_what_a_short_row_has_outside_the_range_may_be_rounding_of_a_long_one(name, dtype):
    """Such as the gradient of a row that is fitted almost exactly: a difference of long ones."""
    H, V, values = singular(dtype)
    outside, unit = torch.linalg.qr(V, mode="complete").Q[:, -1], torch.finfo(dtype).eps
    rhs = random_rhs(3, RANK) @ V.T
    rhs /= rhs.norm(dim=1, keepdim=True)
    rhs[1] *= 30 * unit
    expected = (rhs @ V / values) @ V.T
    rhs[1] += 5 * unit * outside
    x = METHODS[name].factorize(DenseCurvature(H)).solve(rhs.to(dtype), damping=0.0).x
    assert relative_error(x[[0, 2]], expected[[0, 2]]) <= 1e-4
    assert (x[1] - expected[1]).norm() <= 100 * 16 * unit / values[-1]


@pytest.mark.parametrize("power", [-80, 70])
@pytest.mark.parametrize("name", ["direct", "nystroem, above the rank"])
def test_rows_of_any_length_are_told_from_those_outside_the_range(name, power):
    H, V, values = singular(torch.float32)
    rhs = random_rhs(1, RANK) @ V.T
    factorization = METHODS[name].factorize(DenseCurvature(H))
    x = factorization.solve(rhs.float() * 2.0**power, damping=0.0).x / 2.0**power
    assert relative_error(x, (rhs @ V / values) @ V.T) <= 1e-4
    rhs += 0.5 * rhs.norm() * torch.linalg.qr(V, mode="complete").Q[:, -1]
    with pytest.raises(IndefiniteError, match=r"up to 4\.5e-01 of their length"):
        factorization.solve(rhs.float() * 2.0**power, damping=0.0)
