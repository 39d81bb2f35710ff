import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_systems import Counted, random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.solvers import Nystroem
from influence_dag.solvers.base import random_rows


def low_rank(rank, size, *, seed=0):
    rows = random_rhs(rank, size, seed=seed)
    return rows.T @ rows / size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power_iterations", [0, 1])
def test_a_low_rank_curvature_is_recovered(dtype, power_iterations):
    H, rhs = low_rank(8, 50).to(dtype), random_rhs(5, 50).to(dtype)
    method = Nystroem(rank=12, power_iterations=power_iterations)
    x = method.factorize(DenseCurvature(H)).solve(rhs, damping=1e-2).x
    assert relative_error(x, reference.damped_solve(H, rhs, 1e-2)) <= 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 30), power=st.integers(0, 2))
def test_the_approximation_is_orthonormal_and_never_above_the_curvature(seed, rank, power):
    H = spd_matrix(30, seed=seed)
    basis = Nystroem(rank=rank, seed=seed, power_iterations=power).factorize(DenseCurvature(H))
    V, values = basis.eigenvectors, basis.eigenvalues
    assert (V.T @ V - torch.eye(len(values), dtype=V.dtype)).abs().max() <= 1e-10
    assert torch.linalg.eigvalsh(H - (V * values) @ V.T)[0] >= -1e-10
    assert (values[:-1] >= values[1:]).all()


def test_a_seed_gives_the_same_basis_and_another_seed_another():
    def basis(seed):
        return Nystroem(rank=5, seed=seed).factorize(DenseCurvature(spd_matrix(30))).eigenvectors

    assert torch.equal(basis(3), basis(3))
    assert not torch.allclose(basis(3), basis(4))


def test_products_are_one_block_and_one_more_for_each_power_iteration():
    curvature = Counted(spd_matrix(30))
    Nystroem(rank=5, power_iterations=2).factorize(curvature)
    assert curvature.rows_seen == [5, 5, 5]


def test_directions_that_are_not_positive_are_discarded_with_a_warning():
    eigenvalues, Q = torch.linalg.eigh(spd_matrix(20))
    H = (Q * eigenvalues.index_fill(0, torch.tensor([0, 1]), -0.5)) @ Q.T
    with pytest.warns(RuntimeWarning, match="not positive along 2 of 20 sketched directions"):
        basis = Nystroem(rank=20).factorize(DenseCurvature(H))
    solution = basis.solve(random_rhs(2, 20), damping=0.1)
    assert solution.info["discarded"] == 2
    assert solution.info["rank"] == 18
    positive = (Q[:, 2:] * eigenvalues[2:]) @ Q[:, 2:].T
    expected = reference.damped_solve(positive, random_rhs(2, 20), 0.1)
    assert relative_error(solution.x, expected) <= 1e-6


def test_a_curvature_of_zero_leaves_the_damping():
    basis = Nystroem(rank=3).factorize(DenseCurvature(torch.zeros(6, 6, dtype=torch.float64)))
    rhs = random_rhs(2, 6)
    assert torch.equal(basis.solve(rhs, damping=0.5).x, rhs / 0.5)


def test_a_complement_needs_a_damping():
    basis = Nystroem(rank=3).factorize(DenseCurvature(spd_matrix(6)))
    with pytest.raises(ValueError, match="damping=0 cannot stand for what 3 eigenpairs of 6"):
        basis.solve(random_rhs(1, 6), damping=0.0)


def test_random_rows_that_are_kept_are_nobodys_to_write_over():
    def drawn(seed: int) -> torch.Tensor:
        device = torch.device("cpu")
        return random_rows(4, 40, seed=seed, dtype=torch.float32, device=device)

    first = drawn(3)
    expected = first.clone()
    first.zero_()
    assert torch.equal(drawn(3), expected)
    assert not torch.equal(drawn(4), expected)
