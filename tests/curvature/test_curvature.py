"""The Hessian and the Gauss-Newton matrix by every route, against plain autograd."""

import pytest
import reference
import torch
from networks import CASES, LAYERED, digits, digits_mlp
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.curvature import CURVATURES, DenseCurvature, GaussNewton, Hessian
from influence_dag.errors import ModelError
from influence_dag.losses import reduced_loss
from influence_dag.objective.objective import Objective, Rows

OPERATORS = [CURVATURES[name] for name in CURVATURES]


def make(name, dtype=torch.float64):
    module, x, y = CASES[name].make(dtype)
    return module, Objective(module, "cross_entropy"), Rows(x, y)


def relative(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def gauss_newton(module, x, y):
    """Mean of Jᵀ (diag p − p pᵀ) J for softmax cross-entropy, one Jacobian row at a time."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = 0.0
    for i in range(len(y)):
        output = module(x[i : i + 1])[0]
        rows = [
            torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            for value in output
        ]
        J = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
        p = output.softmax(0).detach()
        total = total + J.T @ (p.diag() - p.outer(p)) @ J
    return total / len(y)


@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_autograds_for_any_model(name):
    module, objective, rows = make(name)
    expected = reference.hessian(module, F.cross_entropy, rows.x, rows.y)
    assert_close(Hessian(objective, rows, batch_size=4).dense(), expected)


@pytest.mark.parametrize("name", CASES)
def test_the_gauss_newton_matrix_is_that_of_the_outputs(name):
    module, objective, rows = make(name)
    expected = gauss_newton(module, rows.x, rows.y)
    assert_close(GaussNewton(objective, rows, batch_size=4).dense(), expected)


@pytest.mark.parametrize("curvature", OPERATORS)
@pytest.mark.parametrize("name", LAYERED)
def test_both_routes_give_the_same_matrix(name, curvature):
    _, objective, rows = make(name)
    layered = curvature(objective, rows, route="layered").dense()
    general = curvature(objective, rows, route="autograd").dense()
    assert_close(layered, general, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("curvature", OPERATORS)
@pytest.mark.parametrize("name", ["deep", "norms"])
def test_applied_to_rows_it_is_the_matrix_product(name, curvature):
    _, objective, rows = make(name)
    vectors = torch.randn(37, objective.size, dtype=torch.float64)
    operator = curvature(objective, rows, batch_size=4)
    assert_close(operator.apply(vectors), vectors @ operator.dense())
    assert_close(operator.apply(vectors[5:6]), operator.apply(vectors)[5:6])


@pytest.mark.parametrize("curvature", OPERATORS)
@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_the_batch_size_changes_nothing(curvature, route):
    _, objective, rows = make("deep")
    whole = curvature(objective, rows, route=route).dense()
    for batch_size in (1, 2, 4, 7):
        parts = curvature(objective, rows, route=route, batch_size=batch_size).dense()
        assert_close(parts, whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("curvature", OPERATORS)
@pytest.mark.parametrize("name", ["deep", "norms"])
def test_sums_over_rows_add_up_in_float64(name, curvature):
    _, objective, rows = make(name, torch.float32)
    operator = curvature(objective, rows)
    parts = operator.dense_sum(rows[:4]) + operator.dense_sum(rows[4:])
    assert parts.dtype == torch.float64
    assert_close(parts / len(rows), operator.dense().double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("curvature", OPERATORS)
@pytest.mark.parametrize("name", ["deep", "frozen weight", "norms"])
def test_the_matrix_is_exactly_symmetric(name, curvature):
    _, objective, rows = make(name, torch.float32)
    matrix = curvature(objective, rows, batch_size=4).dense()
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LAYERED])
def test_the_layered_route_is_refused_for_other_models(name):
    _, objective, rows = make(name)
    with pytest.raises(ModelError, match=r"not a chain of Linear.*route='auto'"):
        Hessian(objective, rows, route="layered").dense()


def test_a_linear_model_has_the_same_hessian_and_gauss_newton_matrix():
    _, objective, rows = make("linear")
    assert_close(GaussNewton(objective, rows).dense(), Hessian(objective, rows).dense())


def test_the_gauss_newton_matrix_is_positive_semidefinite_where_the_hessian_is_not():
    _, objective, rows = make("mlp")
    assert torch.linalg.eigvalsh(Hessian(objective, rows).dense())[0] < -1e-3
    assert torch.linalg.eigvalsh(GaussNewton(objective, rows).dense())[0] > -1e-14


LOSSES = {
    "mse": (F.mse_loss, lambda n: torch.randn(n, 3, dtype=torch.float64)),
    "bce_with_logits": (
        F.binary_cross_entropy_with_logits,
        lambda n: torch.randint(0, 2, (n, 3)).double(),
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_other_losses(loss, route):
    module, _, rows = make("deep")
    loss_of_batch, targets = LOSSES[loss]
    rows = Rows(rows.x, targets(len(rows)))
    expected = reference.hessian(module, loss_of_batch, rows.x, rows.y)
    assert_close(Hessian(Objective(module, loss), rows, route=route).dense(), expected)


@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_more_outputs_than_are_multiplied_with_one_by_one(route):
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 35)).double()
    rows = Rows(torch.randn(4, 2).double(), torch.randn(4, 35).double())
    expected = reference.hessian(module, F.huber_loss, rows.x, rows.y)
    objective = Objective(module, reduced_loss(nn.HuberLoss()))
    assert_close(Hessian(objective, rows, route=route).dense(), expected)


@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_a_loss_linear_in_the_outputs_has_no_curvature_of_its_own(route):
    module, _, rows = make("mlp")
    objective = Objective(module, lambda output, target: output[:, 0])
    expected = reference.hessian(module, lambda f, _: f[:, 0].mean(), rows.x, rows.y)
    assert_close(Hessian(objective, rows, route=route).dense(), expected)


def test_the_hessian_is_the_slope_of_the_gradient():
    _, objective, rows = make("deep")
    direction = torch.randn(objective.size, dtype=torch.float64)
    gradient = torch.func.grad(objective.mean_loss)
    step = 1e-5
    ahead, behind = (gradient(objective.params + sign * step * direction, rows) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    assert_close(Hessian(objective, rows).apply(direction[None])[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("curvature", OPERATORS)
def test_float32_is_close_to_float64_on_the_digits_network(curvature):
    arrays = digits()
    rows = Rows(arrays["x_train"], arrays["y_train"])
    exact = Objective(digits_mlp(torch.float64), "cross_entropy")
    expected = curvature(exact, rows.to(dtype=torch.float64)).dense()
    actual = curvature(Objective(digits_mlp(), "cross_entropy"), rows).dense()
    assert relative(actual, expected) < 1e-6


def test_parameters_that_nothing_reads_have_zero_rows():
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    module.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    _, _, rows = make("mlp")
    matrix = Hessian(Objective(module, "cross_entropy"), rows, route="layered").dense()
    expected = reference.hessian(module[:3], F.cross_entropy, rows.x, rows.y)
    assert_close(matrix[2:, 2:], expected)
    assert matrix[:2].abs().max() == 0


@pytest.mark.parametrize("curvature", [Hessian, GaussNewton])
@pytest.mark.parametrize("route", ["auto", "autograd"])
def test_rows_are_multiplied_in_the_curvatures_precision(curvature, route):
    _, objective, rows = make("mlp", torch.float32)
    operator = curvature(objective, rows, route=route)
    vectors = torch.randn(20, objective.size).double()
    found = operator.apply(vectors)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), operator.apply(vectors.float()))


def test_memory_that_runs_out_is_told_as_that(monkeypatch):
    def product(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    _, objective, rows = make("mlp")
    monkeypatch.setattr(Hessian, "product", product)
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate"):
        Hessian(objective, rows, route="autograd").dense()


def test_a_matrix_at_hand_is_a_curvature():
    H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    curvature = DenseCurvature(H)
    assert curvature.size == 2
    assert torch.equal(curvature.dense(), H)
    assert curvature.apply(torch.tensor([[1.0, 0.0]])).tolist() == [[2.0, 1.0]]
