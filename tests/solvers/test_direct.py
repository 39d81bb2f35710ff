import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from solver_systems import Counted, random_rhs, relative_error, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.errors import IndefiniteError, ModelError
from influence_dag.solvers import Direct
from influence_dag.solvers.direct import CholeskyFactor, LUFactor
from influence_dag.solvers.eigenbasis import Eigenbasis
from influence_dag.solvers.rounding import rounding


def indefinite(size=12, smallest=-0.2):
    H = spd_matrix(size)
    eigenvalues, Q = torch.linalg.eigh(H)
    eigenvalues[0] = smallest
    return (Q * eigenvalues) @ Q.T


@pytest.mark.parametrize("condition", [1e3, 1e5])
@pytest.mark.parametrize("late", [False, True], ids=["cholesky", "eigenbasis"])
def test_float32_answers_stay_exact_up_to_condition_1e5(condition, late):
    H, damping = spd_matrix(200, decay=0.1).float(), 1 / condition
    rhs = random_rhs(20, 200).float()
    method = Direct() if late else Direct(damping=damping)
    x = method.factorize(DenseCurvature(H)).solve(rhs, damping=damping).x
    assert relative_error(x, reference.damped_solve(H, rhs, damping)) <= 5e-6


def test_one_damping_is_factorised_once_by_cholesky():
    assert isinstance(Direct(damping=0.1).factorize(DenseCurvature(spd_matrix(5))), CholeskyFactor)


def test_a_late_damping_forms_the_curvature_once():
    class FormedOnce(Counted):
        formed = 0

        def dense(self):
            self.formed += 1
            return self.inner.dense()

    curvature = FormedOnce(spd_matrix(8))
    factorization = Direct().factorize(curvature)
    for damping in (1e-1, 1e-2, 1e-3):
        x = factorization.solve(random_rhs(3, 8), damping=damping).x
        expected = reference.damped_solve(spd_matrix(8), random_rhs(3, 8), damping)
        assert relative_error(x, expected) <= 1e-10
    assert isinstance(factorization, Eigenbasis)
    assert (curvature.formed, curvature.calls) == (1, 0)


def test_another_damping_than_the_factorised_one_is_refused():
    factorization = Direct(damping=0.1).factorize(DenseCurvature(spd_matrix(5)))
    with pytest.raises(ValueError, match=r"damping=0.1, asked to solve with damping=0.2"):
        factorization.solve(random_rhs(1, 5), damping=0.2)


@given(smallest=st.floats(-10, -1e-6))
@pytest.mark.parametrize("late", [False, True], ids=["cholesky", "eigenbasis"])
def test_the_suggested_damping_does(late, smallest):
    H, rhs = indefinite(smallest=smallest), random_rhs(2, 12)

    def solve(damping):
        method = Direct() if late else Direct(damping=damping)
        return method.factorize(DenseCurvature(H)).solve(rhs, damping=damping).x

    with pytest.raises(IndefiniteError, match="smallest eigenvalue") as caught:
        solve(0.5 * abs(smallest))
    assert caught.value.smallest_eigenvalue == pytest.approx(smallest, rel=1e-6, abs=1e-12)
    suggested = caught.value.suggested_damping
    assert suggested <= 2.2 * abs(smallest) + 1e-10
    assert relative_error(solve(suggested), reference.damped_solve(H, rhs, suggested)) <= 1e-8


@pytest.mark.parametrize("late", [False, True], ids=["lu", "eigenbasis"])
def test_indefinite_systems_are_solved_when_asked_for(late):
    H, rhs = indefinite(), random_rhs(4, 12)
    method = Direct(damping=None if late else 0.1, on_indefinite="lu")
    factorization = method.factorize(DenseCurvature(H))
    x = factorization.solve(rhs, damping=0.1).x
    assert isinstance(factorization, Eigenbasis if late else LUFactor)
    assert relative_error(x, reference.damped_solve(H, rhs, 0.1)) <= 1e-9
    restored = method.restore(factorization.tensors(), None)
    assert torch.equal(restored.solve(rhs, damping=0.1).x, x)


@pytest.mark.parametrize("on_indefinite", ["raise", "lu"])
@pytest.mark.parametrize("late", [False, True], ids=["factor", "eigenbasis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_system_is_never_solved(on_indefinite, late, dtype):
    rows = random_rhs(5, 12)
    H = (rows.T @ rows).to(dtype)  # rank 5 of 12: rounding alone makes it invertible
    method = Direct(damping=None if late else 0.0, on_indefinite=on_indefinite)
    with pytest.raises(IndefiniteError) as caught:
        method.factorize(DenseCurvature(H)).solve(random_rhs(1, 12).to(dtype), damping=0.0)
    assert 0 < caught.value.suggested_damping < 1e-2


@pytest.mark.parametrize("damping", [None, 0.0], ids=["eigenbasis", "factor"])
def test_no_eigenvalue_counts_as_zero_where_none_is_asked_to(damping):
    H = torch.diag(torch.tensor([1.0, 1e-20])).double()
    method = Direct(damping=damping, rounding=0)
    x = method.factorize(DenseCurvature(H)).solve(torch.ones(1, 2).double(), damping=0.0).x
    torch.testing.assert_close(x, torch.tensor([[1.0, 1e20]]).double())


SHARE = rounding(torch.float64, 100)
# Damping, the largest diagonal entry, the smallest eigenvalue over what counts as zero (of a
# correlation of two columns of size 1): whether that is told from zero.
NEAR_ZERO = [
    *((0.0, 1.0, 100, True), (0.0, 1.0, 2, False), (0.0, 1e6, 100, False)),
    *((1e-3, 1.0, 100, True), (1e-3, 1.0, 2, False)),
    *((1e-3, 1e6, 100, True), (1e-3, 1e6, 2, False)),  # columns of any size hide nothing
]


def near_zero(largest, smallest):
    H = torch.eye(100, dtype=torch.float64)
    H[5, 5] = largest
    H[7, 90] = H[90, 7] = 1 - smallest * SHARE
    return H


@pytest.mark.parametrize(("damping", "largest", "smallest", "clear"), NEAR_ZERO)
def test_eigenvalues_tell_what_is_zero_where_pivots_do_not(damping, largest, smallest, clear):
    """100 of a share of √100, the norm, are above it and below 100 times as much, p pivots'."""
    H = near_zero(largest, smallest)
    H.diagonal().sub_(damping)
    factorization = Direct(damping=damping).factorize(DenseCurvature(H))
    assert isinstance(factorization, CholeskyFactor if clear else Eigenbasis)


@pytest.mark.parametrize("smallest", [100, 2])
def test_the_same_of_an_indefinite_system(smallest):
    H = near_zero(-0.5, smallest)
    method = Direct(damping=0.0, on_indefinite="lu")
    if smallest == 100:
        assert isinstance(method.factorize(DenseCurvature(H)), LUFactor)
    else:
        with pytest.raises(IndefiniteError, match=r"smallest eigenvalue of H is -0\.5"):
            method.factorize(DenseCurvature(H))


def test_a_curvature_that_is_not_finite_is_refused():
    H = spd_matrix(4)
    H[1, 2] = torch.nan
    with pytest.raises(ModelError, match="the curvature: 1 of 16 entries are not finite"):
        Direct(damping=0.1).factorize(DenseCurvature(H))
