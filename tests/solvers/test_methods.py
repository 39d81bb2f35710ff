"""What every method answers to; a new method joins METHODS and inherits every test."""

from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_systems import random_rhs, relative_error, spd_matrix

from influence_dag import solvers
from influence_dag.curvature import DenseCurvature
from influence_dag.solvers import (
    Arnoldi,
    Blockwise,
    ConjugateGradient,
    Direct,
    LiSSA,
    Nystroem,
    build,
)

P = 24
DAMPING = 0.1
METHODS = [
    Direct(),
    Direct(damping=DAMPING),
    Direct(damping=DAMPING, on_indefinite="lu"),
    ConjugateGradient(rtol=1e-10),
    ConjugateGradient(rtol=1e-10, preconditioner="jacobi"),
    ConjugateGradient(rtol=1e-10, preconditioner="none"),
    ConjugateGradient(rtol=1e-10, rank=4),
    Nystroem(rank=P),
    Arnoldi(rank=P),
    Arnoldi(rank=P, complement="damping"),
    LiSSA(rtol=1e-11, maxiter=5000),
    Blockwise(method=Direct(), blocks={"all": torch.arange(P)}),
    Blockwise(method=ConjugateGradient(rtol=1e-10), blocks={"all": torch.arange(P)}),
]
exact = pytest.mark.parametrize("method", METHODS, ids=repr)


def solve(method, matrix, rhs, *, damping=DAMPING):
    return method.factorize(DenseCurvature(matrix)).solve(rhs, damping=damping)


@exact
def test_solve_agrees_with_the_dense_inverse(method):
    H, rhs = spd_matrix(P), random_rhs(7, P)
    expected = reference.damped_solve(H, rhs, damping=DAMPING)
    assert relative_error(solve(method, H, rhs).x, expected) <= 1e-8


@exact
def test_float32_stays_float32_and_agrees(method):
    H, rhs = spd_matrix(P).float(), random_rhs(7, P).float()
    if isinstance(method, LiSSA | ConjugateGradient):
        method = replace(method, rtol=1e-6)
    x = solve(method, H, rhs).x
    assert x.dtype == torch.float32
    tolerance = 1e-4 if isinstance(method, LiSSA) else 5e-6  # its rtol is that of a step
    assert relative_error(x, reference.damped_solve(H, rhs, damping=DAMPING)) <= tolerance


@exact
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_solve_is_linear_in_the_right_hand_side(method, seed, a, b):
    H = spd_matrix(P)
    u, v = random_rhs(2, P, seed=seed).split(1)
    together = solve(method, H, a * u + b * v).x
    separate = a * solve(method, H, u).x + b * solve(method, H, v).x
    assert (together - separate).abs().max() <= 1e-7 * (1 + abs(a) + abs(b))


@exact
@pytest.mark.parametrize("power", [-110, -70, 70])
def test_a_row_whose_squares_float32_cannot_hold_is_solved_as_any_other(method, power):
    """Such as the gradient of a test row that a model is sure of: 2^-70 squared is zero."""
    H, rhs = spd_matrix(P).float(), random_rhs(3, P).float()
    if isinstance(method, LiSSA | ConjugateGradient):
        method = replace(method, rtol=1e-6)
    expected = solve(method, H, rhs).x
    rhs[1] *= 2.0**power
    found = solve(method, H, rhs).x
    found[1] /= 2.0**power
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@exact
def test_solve_is_symmetric(method):
    H = spd_matrix(P)
    u, v = random_rhs(3, P, seed=2), random_rhs(4, P, seed=3)
    left, right = solve(method, H, u).x @ v.T, u @ solve(method, H, v).x.T
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)


@exact
def test_a_row_does_not_depend_on_the_rows_beside_it(method):
    H, rhs = spd_matrix(P), random_rhs(7, P)
    rhs[3] *= 1e4
    rhs[5] = 0
    factorization = method.factorize(DenseCurvature(H))
    together = factorization.solve(rhs, damping=DAMPING).x
    alone = [factorization.solve(rhs[i : i + 1], damping=DAMPING).x for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=1e-8)


@exact
def test_a_zero_row_has_a_zero_answer(method):
    x = solve(method, spd_matrix(P), torch.zeros(2, P, dtype=torch.float64)).x
    assert torch.equal(x, torch.zeros_like(x))


@exact
def test_no_rows_are_no_trouble(method):
    assert solve(method, spd_matrix(P), random_rhs(0, P)).x.shape == (0, P)


@exact
def test_more_rows_than_parameters(method):
    H, rhs = spd_matrix(P), random_rhs(3 * P, P)
    expected = reference.damped_solve(H, rhs, damping=DAMPING)
    assert relative_error(solve(method, H, rhs).x, expected) <= 1e-8


@exact
def test_tensors_restore_the_factorisation(method):
    curvature, rhs = DenseCurvature(spd_matrix(P)), random_rhs(7, P)
    factorization = method.factorize(curvature)
    stored = {name: tensor.clone() for name, tensor in factorization.tensors().items()}
    restored = method.restore(stored, curvature)
    expected = factorization.solve(rhs, damping=DAMPING).x
    assert torch.equal(restored.solve(rhs, damping=DAMPING).x, expected)
    assert restored.tensors().keys() == stored.keys()


@exact
def test_inputs_are_left_alone(method):
    H, rhs = spd_matrix(P), random_rhs(3, P)
    H_before, rhs_before = H.clone(), rhs.clone()
    solve(method, H, rhs)
    assert torch.equal(H, H_before)
    assert torch.equal(rhs, rhs_before)


@pytest.mark.parametrize("damping", [1e-3, 1e-4])
@pytest.mark.parametrize(
    "method", [m for m in METHODS if getattr(m, "damping", None) is None], ids=repr
)
def test_small_dampings(method, damping):
    # The smallest eigenvalue is 1e-3: the damping decides the answer, a wrong one would show.
    H, rhs = spd_matrix(P), random_rhs(7, P)
    if isinstance(method, LiSSA):  # 3e-3, for a third of the steps
        H, method = spd_matrix(P, decay=0.25), LiSSA(rtol=1e-10, maxiter=50_000)
    expected = reference.damped_solve(H, rhs, damping=damping)
    other = reference.damped_solve(H, rhs, damping=2 * damping)
    assert relative_error(solve(method, H, rhs, damping=damping).x, expected) <= 1e-6
    assert relative_error(other, expected) >= 1e-2


def test_methods_are_built_by_name():
    assert build("direct", {"damping": 0.5}) == Direct(damping=0.5)
    assert build("cg") == ConjugateGradient()
    assert set(solvers.METHODS) >= {*("direct", "cg", "lissa", "arnoldi", "nystroem", "identity")}


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown method 'newton'; the methods are .*direct"):
        build("newton")


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(TypeError, match=r"'cg' has no setting 'tolerance'; it accepts rtol, atol"):
        build("cg", {"tolerance": 1e-3})


@pytest.mark.parametrize("power", [-120, -70, -30])
@pytest.mark.parametrize("method", [ConjugateGradient(), LiSSA(rtol=1e-6, maxiter=400)], ids=repr)
def test_a_start_of_another_row_does_no_harm(method, power):
    """A refresh starts at the factors of the slot's row before, which may have been far longer."""
    H, rhs = spd_matrix(P).float(), random_rhs(3, P).float()
    factorization = method.factorize(DenseCurvature(H))
    before = factorization.solve(rhs, damping=DAMPING).x
    rhs[1] *= 2.0**power
    expected = factorization.solve(rhs, damping=DAMPING).x
    found = factorization.solve(rhs, damping=DAMPING, x0=before.roll(1, 0)).x
    for x in (found, expected):
        x[1] /= 2.0**power
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
