"""λ = 1e-3 and 1e-4 on digits: dampings so small that an inverse of another matrix shows.

Three real curvatures: the Gauss-Newton matrix of the digits MLP (singular), the Hessian of a
softmax regression at its minimum (650 parameters, 330 of them flat), and the MLP's Hessian, which
is indefinite at these dampings: the answer then is the eigenvalue and the damping that would do.
"""

import copy
import re
import warnings
from functools import cached_property

import pytest
import reference
import torch
from networks import digits, digits_mlp
from solver_systems import relative_error
from torch import nn

from influence_dag.curvature import DenseCurvature, GaussNewton, Hessian
from influence_dag.errors import IndefiniteError, NotConvergedError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC, Arnoldi, ConjugateGradient, Direct, LiSSA, Nystroem

SMALL = (1e-3, 1e-4)
PRECISIONS = {"double": torch.float64, "single": torch.float32}
dampings = pytest.mark.parametrize("damping", SMALL)


def rows(which, count=None, dtype=torch.float64):
    arrays = digits()
    return Rows(arrays[f"x_{which}"][:count].to(dtype), arrays[f"y_{which}"][:count].long())


def answers_differ(H, rhs, damping):
    """The damping decides the answer: another one would be seen."""
    one, other = (reference.damped_solve(H, rhs, d) for d in (damping, 1.2 * damping))
    assert relative_error(other, one) >= 0.02
    return one


# The softmax regression's Hessian ---------------------------------------------------------------


class Regression:
    """Fitted with an L2 penalty of the damping, by Newton's method, to rounding."""

    def __init__(self, weight_decay):
        self.module = nn.Linear(64, 10).double()
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        objective, train = Objective(self.module, "cross_entropy"), rows("train")
        identity = torch.eye(objective.size, dtype=torch.float64)
        for _ in range(12):
            theta = objective.params
            gradient = torch.func.grad(objective.mean_loss)(theta, train) + weight_decay * theta
            H = Hessian(objective, train).dense() + weight_decay * identity
            objective.params = theta - torch.linalg.solve(H, gradient)
            if gradient.norm() <= 1e-12:
                break
        assert gradient.norm() <= 1e-12
        self.module.load_state_dict(objective.unflatten(objective.params))
        self.H = reference_hessian(self.module, train)
        self.rhs = self.gradients(torch.float64)
        self.expected = answers_differ(self.H, self.rhs, weight_decay)

    def hessian(self, dtype=torch.float64):
        module = copy.deepcopy(self.module).to(dtype)
        return Hessian(Objective(module, "cross_entropy"), rows("train", dtype=dtype))

    @cached_property
    def dense(self):
        """The Hessian as a matrix, by its precision."""
        return {dtype: self.hessian(dtype).dense() for dtype in PRECISIONS.values()}

    def gradients(self, dtype):
        objective = self.hessian(dtype).objective
        return per_sample_gradients(objective, rows("test", 6, dtype)).dense()


def reference_hessian(module, train):
    """Closed form of softmax regression: mean of (diag(p) - ppᵀ) ⊗ x̃x̃ᵀ, bias last."""
    with torch.no_grad():
        p = module(train.x).softmax(1)
    x = torch.cat([train.x, torch.ones(len(train), 1, dtype=torch.float64)], 1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = torch.einsum("nab,ni,nj->aibj", S, x, x) / len(x)
    order = torch.arange(650).view(10, 65)
    order = torch.cat([order[:, :64].flatten(), order[:, 64]])
    return H.reshape(650, 650)[order][:, order]


@pytest.fixture(scope="module", params=SMALL, ids=lambda damping: f"{damping:g}")
def regression(request):
    return request.param, Regression(request.param)


EXACT = {
    "direct": (lambda damping: Direct(damping=damping), 1e-9),
    "direct, any damping": (lambda damping: Direct(), 1e-9),
    "cg": (lambda damping: ConjugateGradient(), 1e-5),
    "cg, jacobi": (lambda damping: ConjugateGradient(preconditioner="jacobi"), 1e-5),
    "cg, ekfac": (lambda damping: ConjugateGradient(preconditioner="ekfac"), 1e-5),
    "cg, plain": (lambda damping: ConjugateGradient(preconditioner="none"), 1e-5),
    "arnoldi": (lambda damping: Arnoldi(rank=650), 1e-8),
    "arnoldi, complement": (lambda damping: Arnoldi(rank=650, complement="damping"), 1e-8),
    "nystroem": (lambda damping: Nystroem(rank=650), 1e-8),
    "nystroem, published": (lambda damping: Nystroem(rank=650, power_iterations=0), 1e-8),
}
precisions = pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)


@precisions
@pytest.mark.parametrize("name", EXACT)
def test_the_hessian_of_a_softmax_regression(name, dtype, regression):
    damping, problem = regression
    make, tolerance = EXACT[name]
    method, layered = make(damping), name == "cg, ekfac"
    curvature = problem.hessian(dtype) if layered else DenseCurvature(problem.dense[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is discarded, nothing misses a tolerance
        rhs = problem.gradients(dtype)
        x = method.factorize(curvature).solve(rhs, damping=damping).x
    limit = tolerance if dtype == torch.float64 else max(tolerance, 1e-4)
    assert relative_error(x, problem.expected) <= limit


def test_a_series_that_did_not_get_there_says_so_and_one_that_may_does(regression):
    damping, problem = regression
    curvature, rhs = DenseCurvature(problem.dense[torch.float32]), problem.rhs[:2].float()
    with pytest.raises(NotConvergedError, match=r"2 of 2 series still move by .*raise maxiter"):
        LiSSA().factorize(curvature).solve(rhs, damping=damping)
    if damping >= 1e-3:  # 2,000 steps; a smaller one is for the campaign
        patient = LiSSA(rtol=1e-5, maxiter=10_000).factorize(curvature)
        x = patient.solve(rhs, damping=damping).x
        assert relative_error(x, problem.expected[:2]) <= 3e-2


@pytest.mark.campaign
def test_a_patient_series_converges_at_either_damping(regression):
    """3,052 steps at λ = 1e-3, error 4e-4; 9,786 at 1e-4, error 2e-3."""
    damping, problem = regression
    series = LiSSA(rtol=1e-6, maxiter=12_000).factorize(DenseCurvature(problem.H))
    assert relative_error(series.solve(problem.rhs, damping=damping).x, problem.expected) <= 5e-3


@pytest.mark.parametrize("method", [EKFAC(), KFAC(), EKFAC(fisher="empirical")], ids=repr)
def test_kronecker_factors_against_their_own_dense_inverse(method, regression):
    damping, problem = regression
    factorization = method.factorize(problem.hessian())
    identity = torch.eye(650, dtype=torch.float64)
    matrix = torch.linalg.inv(factorization.solve(identity, damping=1.0).x) - identity
    expected = answers_differ(matrix, problem.rhs, damping)
    x = factorization.solve(problem.rhs, damping=damping).x
    assert relative_error(x, expected) <= 1e-7


# The MLP's Gauss-Newton matrix ------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp():
    module = digits_mlp(torch.float64)
    objective, train = Objective(module, "cross_entropy"), rows("train")
    G = GaussNewton(objective, train).dense()
    rhs = per_sample_gradients(objective, rows("test", 6)).dense()
    return G, rhs, {damping: reference.damped_solve(G, rhs, damping) for damping in SMALL}


@dampings
@pytest.mark.parametrize(("name", "tolerance"), [("direct", 1e-9), ("cg", 1e-5)])
def test_the_gauss_newton_matrix_of_a_network(name, tolerance, damping, mlp):
    G, rhs, expected = mlp
    make, _ = EXACT[name]
    x = make(damping).factorize(DenseCurvature(G)).solve(rhs, damping=damping).x
    assert relative_error(x, expected[damping]) <= tolerance


@dampings
def test_in_single_precision_cg_reaches_its_tolerance_or_names_one_that_it_reaches(damping, mlp):
    G, rhs, expected = mlp
    curvature, b = DenseCurvature(G.float()), rhs.float()

    def solve(rtol):
        system = ConjugateGradient(rtol=rtol).factorize(curvature)
        return system.solve(b, damping=damping)

    try:
        solution = solve(1e-6)
    except NotConvergedError as error:
        solution = solve(float(re.search(r"raise rtol to ([\d.e-]+)", str(error))[1]))
    assert solution.info["residual"].max() <= 1.5e-4
    assert relative_error(solution.x, expected[damping]) <= 3e-4


@pytest.mark.campaign
@dampings
@pytest.mark.parametrize("name", ["nystroem", "direct, any damping"])
def test_all_eigenpairs_of_the_gauss_newton_matrix_of_a_network(name, damping, mlp):
    G, rhs, expected = mlp
    method = Nystroem(rank=len(G)) if name == "nystroem" else Direct()
    x = method.factorize(DenseCurvature(G)).solve(rhs, damping=damping).x
    assert relative_error(x, expected[damping]) <= 1e-9


# The MLP's Hessian: indefinite ------------------------------------------------------------------


@pytest.fixture(scope="module")
def indefinite():
    objective, train = Objective(digits_mlp(torch.float64), "cross_entropy"), rows("train")
    H = Hessian(objective, train).dense()
    smallest = torch.linalg.eigvalsh(H)[0].item()
    return H, smallest, per_sample_gradients(objective, rows("test", 6)).dense()


@pytest.mark.parametrize(("name", "damping"), [("direct", 1e-3), ("cg", 1e-4)])
def test_an_indefinite_hessian_names_its_eigenvalue_and_a_damping_that_does(
    name, damping, indefinite
):
    H, smallest, rhs = indefinite
    make, _ = EXACT[name]
    with pytest.raises(
        IndefiniteError, match=r"smallest eigenvalue of H is -0\.0013|-0\.0015"
    ) as it:
        make(damping).factorize(DenseCurvature(H)).solve(rhs, damping=damping)
    # From Lanczos it is estimated, on the safe side.
    told, enough = it.value.smallest_eigenvalue, it.value.suggested_damping
    assert 1.25 * smallest <= told <= 0.999 * smallest
    assert -1.99 * smallest < enough <= 4e-3
    x = make(enough).factorize(DenseCurvature(H)).solve(rhs, damping=enough).x
    assert relative_error(x, reference.damped_solve(H, rhs, enough)) <= 1e-4
