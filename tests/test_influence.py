import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, LAYERED, digits, digits_mlp
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import influence_dag as idag
from influence_dag.curvature import Hessian
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.influence import perturbation
from influence_dag.influence.layered import layered_products
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.influence.upweighting import influences
from influence_dag.objective.objective import Objective, Rows

DIFFERENTIABLE = [name for name, case in CASES.items() if not case.tokens]


def relative(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# Another library's numbers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_run():
    """Objective, training rows and float32 factors of the digits network at damping 0.01."""
    arrays = digits()
    objective = Objective(digits_mlp(), "cross_entropy")
    train = Rows(arrays["x_train"], arrays["y_train"])
    test = Rows(arrays["x_test"], arrays["y_test"])
    H = Hessian(objective, train).dense()
    rhs = per_sample_gradients(objective, test).dense()
    return objective, train, reference.damped_solve(H, rhs, damping=0.01).float()


def test_influence_factors_agree_with_pydvl(digits_run):
    _, _, factors = digits_run
    assert relative(factors[:10], digits()["pydvl_direct_factors"]) < 5e-6


def test_influences_agree_with_pydvl(digits_run):
    objective, train, factors = digits_run
    actual = influences(factors[:100], per_sample_gradients(objective, train))
    assert relative(actual, digits()["pydvl_direct_influences"]) < 5e-6


@pytest.mark.parametrize("route", ["layered", "autograd", "jacobian"])
def test_perturbation_influences_agree_with_pydvl(digits_run, route):
    objective, train, factors = digits_run
    actual = perturbation_influences(objective, factors[:5], train[:40], route=route)
    assert relative(actual, digits()["pydvl_perturbation"]) < 5e-6


def test_denormal_numbers_are_zero_in_products():
    """Some processors take fourteen times as long with one entry in two hundred."""
    denormal = torch.full((1, 3), torch.finfo(torch.float32).tiny / 4)
    assert influences(denormal, torch.full((2, 3), 1e30)).tolist() == [[0.0, 0.0]]
    assert (denormal * 1e30 > 0).all(), "outside they are what they were"


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_products_in_closed_form_that_are_not_finite_are_autograds(digits_run, monkeypatch, wrong):
    objective, train, factors = digits_run
    real = perturbation.layered_products

    def other(*args, **kwargs):
        found = real(*args, **kwargs)
        found[2, 7, 11] = wrong
        return found

    monkeypatch.setattr(perturbation, "layered_products", other)
    with pytest.warns(RuntimeWarning, match="differentiated by autograd"):
        found = perturbation_influences(objective, factors[:20], train[:40], route="layered")
    expected = perturbation_influences(objective, factors[:20], train[:40], route="autograd")
    assert torch.equal(found, expected)


# Closed forms ---------------------------------------------------------------------------------


def half_squared_error(output, target):
    return (output.squeeze(-1) - target).square() / 2


@pytest.fixture(scope="module")
def ridge():
    """Objective, training rows and factors of a ridge regression; its data, fit and damping."""
    torch.manual_seed(0)
    damping, theta = 0.1, torch.randn(6, dtype=torch.float64)
    x, x_test = torch.randn(250, 6).double(), torch.randn(17, 6).double()
    y, y_test = (rows @ theta + 0.5 * torch.randn(len(rows)).double() for rows in (x, x_test))
    theta = reference.ridge_fit(x, y, damping)
    module = nn.Linear(6, 1, bias=False).double()
    module.weight.data = theta[None]
    objective = Objective(module, half_squared_error)
    train = Rows(x, y)
    rhs = per_sample_gradients(objective, Rows(x_test, y_test)).dense()
    factors = reference.damped_solve(Hessian(objective, train).dense(), rhs, damping)
    return objective, train, factors, (x, y, x_test, y_test, theta, damping)


def test_ridge_influences_are_the_closed_form(ridge):
    objective, train, factors, system = ridge
    actual = influences(factors, per_sample_gradients(objective, train))
    assert relative(actual, reference.ridge_influences(*system)) < 1e-9


@pytest.mark.parametrize("route", ["auto", "layered", "autograd", "jacobian"])
def test_ridge_perturbation_influences_are_the_closed_form(ridge, route):
    objective, train, factors, system = ridge
    actual = perturbation_influences(objective, factors, train, route=route)
    assert relative(actual, reference.ridge_perturbation_influences(*system)) < 1e-9


def pearson(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_leaving_a_row_out_changes_the_test_losses_by_the_influence_over_n(ridge):
    objective, train, factors, (x, y, x_test, y_test, theta, damping) = ridge
    predicted = influences(factors, per_sample_gradients(objective, train)) / len(x)
    changes = []
    for i in range(40):
        kept = torch.arange(len(x)) != i
        # Same objective without the row's term: the sum is still divided by n.
        H = x[kept].T @ x[kept] / len(x) + damping * torch.eye(6).double()
        refit = torch.linalg.solve(H, x[kept].T @ y[kept] / len(x))
        change = (x_test @ refit - y_test).square() - (x_test @ theta - y_test).square()
        changes.append(change / 2)
    changes = torch.stack(changes, 1)
    assert pearson(changes, predicted[:, :40]) > 0.999
    assert (
        0.95 < float((changes * predicted[:, :40]).sum() / predicted[:, :40].square().sum()) < 1.1
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(3, 20),
    d=st.integers(1, 5),
    damping=st.sampled_from([1e-4, 1e-3, 0.1]),
)
def test_predictions_move_with_the_sign_of_the_influence_when_a_row_is_left_out(
    seed, n, d, damping
):
    """Of ridge regression, exactly: a refit moves a prediction by I / n / (1 - leverage)."""
    torch.manual_seed(seed)
    x, y, x_test = torch.randn(n, d).double(), torch.randn(n).double(), torch.randn(3, d).double()
    module = nn.Linear(d, 1, bias=False).double()
    module.weight.data = reference.ridge_fit(x, y, damping)[None]
    wrapped = idag.TorchTwiceDifferentiable(
        module, half_squared_error, measurement=lambda output, target: output[:, 0]
    )
    predicted = idag.compute_influences(
        wrapped, [(x, y)], [(x_test, torch.zeros(3))], hessian_regularization=damping
    )
    H = x.T @ x / n + damping * torch.eye(d).double()
    for i in range(n):
        kept = torch.arange(n) != i
        refit = torch.linalg.solve(H - torch.outer(x[i], x[i]) / n, x[kept].T @ y[kept] / n)
        leverage = x[i] @ torch.linalg.solve(H, x[i]) / n
        change = x_test @ (refit - module.weight[0])
        assert_close(change, predicted[:, i] / n / (1 - leverage), rtol=1e-6, atol=1e-9)


def test_moving_a_feature_changes_the_test_losses_by_minus_the_influence_over_n(ridge):
    objective, train, factors, (x, y, x_test, y_test, theta, damping) = ridge
    predicted = -perturbation_influences(objective, factors, train) / len(x)
    step, changes = 1e-4, []
    for i in range(10):
        for feature in range(6):
            moved = x.clone()
            moved[i, feature] += step
            refit = reference.ridge_fit(moved, y, damping)
            change = (x_test @ refit - y_test).square() - (x_test @ theta - y_test).square()
            changes.append(change / 2 / step)
    changes = torch.stack(changes, 1).view(len(x_test), 10, 6)
    assert pearson(changes, predicted[:, :10]) > 0.9999
    assert relative(predicted[:, :10], changes) < 1e-2


# Any model, every route -----------------------------------------------------------------------


def problem(name, dtype=torch.float64, k=4):
    module, x, y = CASES[name].make(dtype)
    objective = Objective(module, "cross_entropy")
    return module, objective, Rows(x, y), torch.randn(k, objective.size, dtype=dtype)


@pytest.fixture
def no_second_way(monkeypatch):
    """A route that fails is not made up for by another: a test of it would pass by that."""
    monkeypatch.setattr(perturbation, "NOT_FOLLOWED", ())


@pytest.mark.parametrize("route", ["auto", "autograd"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_perturbation_influences_are_autograds_for_any_model(name, route):
    module, objective, rows, factors = problem(name)
    expected = reference.mixed_products(module, F.cross_entropy, factors, rows.x, rows.y)
    assert_close(perturbation_influences(objective, factors, rows, route=route), expected)


class Slope(torch.autograd.Function):
    """It looks at what it multiplies, of which torch cannot have several at once."""

    @staticmethod
    def forward(x, gradient):
        return gradient * x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *moves):
        (x, gradient), (v,) = ctx.saved_tensors, moves
        return (-v * gradient * x.sin(), v * x.cos()) if v.any() else (None, None)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *gradients):
        return Slope.apply(*ctx.saved_tensors, *gradients)


class Waves(nn.Module):
    def __init__(self, sine):
        super().__init__()
        self.inner, self.out, self.sine = nn.Linear(4, 3), nn.Linear(3, 2), sine

    def forward(self, x):
        return self.out(self.sine(self.inner(x)))


@pytest.mark.parametrize("k", [1, 3])
def test_products_that_torch_has_one_at_a_time_are_taken_so(k):
    modules = [Waves(sine).double() for sine in (torch.sin, Sine.apply)]
    modules[1].load_state_dict(modules[0].state_dict())
    rows, found = Rows(torch.randn(5, 4).double(), torch.arange(5) % 2), []
    for module in modules:
        objective = Objective(module, "cross_entropy")
        factors = torch.linspace(-1, 1, k * objective.size).double().view(k, -1)
        found.append(perturbation_influences(objective, factors, rows, route="autograd"))
    assert_close(*found)


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("route", ["layered", "jacobian"])
@pytest.mark.parametrize("name", LAYERED)
def test_perturbation_influences_are_autograds_for_layered_models(name, route):
    module, objective, rows, factors = problem(name)
    expected = reference.mixed_products(module, F.cross_entropy, factors, rows.x, rows.y)
    assert_close(perturbation_influences(objective, factors, rows, route=route), expected)


def test_perturbation_influences_are_the_slope_of_the_influences():
    _, objective, rows, factors = problem("images")
    direction, step = torch.randn_like(rows.x), 1e-5
    ahead, behind = (
        influences(
            factors, per_sample_gradients(objective, Rows(rows.x + s * step * direction, rows.y))
        )
        for s in (1, -1)
    )
    slope = (perturbation_influences(objective, factors, rows) * direction).flatten(2).sum(2)
    assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


class After(nn.Module):
    """A network that sees its inputs through a function."""

    def __init__(self, before):
        super().__init__()
        self.before = before
        self.rest = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        return self.rest(self.before(x))


PREFIXES = {
    "another shape": lambda x: x.flatten(1),
    "another order": lambda x: x.transpose(1, 2).flatten(1),
    "back to front": lambda x: x.flip(1).flatten(1),
    "another size": lambda x: 3 * x.flatten(1),
    "a constant": lambda x: x.detach().flatten(1),
}


@pytest.mark.parametrize("before", PREFIXES.values(), ids=PREFIXES)
def test_what_stands_before_the_first_layer_is_differentiated_too(before):
    module = After(before).double()
    objective = Objective(module, "cross_entropy")
    rows = Rows(torch.randn(5, 2, 3, dtype=torch.float64), torch.randint(3, (5,)))
    factors = torch.randn(4, objective.size, dtype=torch.float64)
    network = LayeredNetwork.of(objective, rows)
    assert network
    found = layered_products(network, factors, rows, chunk=3)
    if before is PREFIXES["a constant"]:
        assert not found.any()
        return
    expected = reference.mixed_products(module, F.cross_entropy, factors, rows.x, rows.y)
    assert_close(found, expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_rows_of_one_number_have_one_derivative_in_their_own_shape(shape):
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    if not shape:
        module = nn.Sequential(nn.Unflatten(0, (-1, 1)), *module[1:])
    objective = Objective(module, "cross_entropy")
    rows = Rows(torch.randn(5, *shape, dtype=torch.float64), torch.randint(3, (5,)))
    factors = torch.randn(4, objective.size, dtype=torch.float64)
    network = LayeredNetwork.of(objective, rows)
    assert network
    found = layered_products(network, factors, rows, chunk=3)
    assert found.shape == (4, 5, *shape)
    expected = perturbation_influences(objective, factors, rows, route="autograd")
    assert_close(found, expected)


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("units", [2, 9], ids=["few for its inputs", "many"])
def test_a_first_layer_of_any_width_gives_what_autograd_does(units):
    module = nn.Sequential(nn.Linear(6, units), nn.Tanh(), nn.Linear(units, 3)).double()
    objective = Objective(module, "cross_entropy")
    rows = Rows(torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,)))
    factors = torch.randn(7, objective.size, dtype=torch.float64)
    found = perturbation_influences(objective, factors, rows, route="layered")
    expected = reference.mixed_products(module, F.cross_entropy, factors, rows.x, rows.y)
    assert_close(found, expected)


def squares(output, target):
    return (output - F.one_hot(target, 3)).square().sum(1)


def tied_squares(output, target):
    """Second derivatives across outputs, of each row its own."""
    return output.sum(1) ** 4 + squares(output, target)


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("k", [2, 7], ids=["fewer factors than outputs", "more"])
@pytest.mark.parametrize("name", ["mlp", "deep", "frozen layer"])
@pytest.mark.parametrize("loss", ["cross_entropy", squares, tied_squares])
def test_second_derivatives_of_the_loss_are_autograds_written_out_or_called(loss, name, k):
    module, _, rows, _ = problem(name)
    objective = Objective(module, loss)
    factors = torch.randn(k, objective.size, dtype=torch.float64)
    of_batch = F.cross_entropy if loss == "cross_entropy" else lambda f, y: loss(f, y).mean()
    expected = reference.mixed_products(module, of_batch, factors, rows.x, rows.y)
    found = perturbation_influences(objective, factors, rows, route="layered", chunk=3)
    assert_close(found, expected)


def test_rows_that_a_model_is_sure_of_keep_their_digits():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), last := nn.Linear(5, 3))
    with torch.no_grad():
        last.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # the first class at 0.9997
    objective = Objective(module, "cross_entropy")
    rows = Rows(torch.randn(50, 4), torch.zeros(50, dtype=torch.int64))
    factors = torch.zeros(1, objective.size)
    factors[:, objective.slices["2.bias"]] = torch.tensor([1000.0, 999.0, 998.0])
    found, expected = (
        layered_products(network, s, at, chunk=1)
        for of, s, at in (
            (objective, factors, rows),
            (objective.in_float64(), factors.double(), rows.to(dtype=torch.float64)),
        )
        if (network := LayeredNetwork.of(of, at))
    )
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_the_layered_route_is_refused_for_other_models():
    _, objective, rows, factors = problem("norms")
    with pytest.raises(ModelError, match="not a chain of Linear"):
        perturbation_influences(objective, factors, rows, route="layered")


# Several inputs -------------------------------------------------------------------------------


class Record(nn.Module):
    """Numbers and a token."""

    def __init__(self):
        super().__init__()
        self.embed, self.outer = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, numbers, token):
        return self.outer(torch.tanh(numbers * self.embed(token)))


@pytest.fixture
def record():
    rows = torch.randn(6, 4).double(), torch.randint(0, 5, (6,)), torch.randint(0, 3, (6,))
    objective = Objective(Record().double(), "cross_entropy")
    factors = torch.randn(3, objective.size, dtype=torch.float64)
    return objective, factors, rows


def test_named_inputs_give_named_results_without_the_integer_ones(record):
    objective, factors, (numbers, token, y) = record
    result = perturbation_influences(
        objective, factors, Rows({"numbers": numbers, "token": token}, y)
    )
    assert list(result) == ["numbers"]
    assert_close(result["numbers"], expected_for_numbers(objective, factors, numbers, token, y))


def test_inputs_by_position_give_results_by_position(record):
    objective, factors, (numbers, token, y) = record
    result = perturbation_influences(objective, factors, Rows((numbers, token), y))
    assert result[1] is None
    assert_close(result[0], expected_for_numbers(objective, factors, numbers, token, y))


def test_the_mixed_jacobian_is_the_same_by_plain_autograd_and_by_torch_func(monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    objective = Objective(network, "cross_entropy")
    rows = Rows(torch.randn(7, 2, 3).double(), torch.arange(7) % 2)
    factors = torch.randn(4, objective.size).double()
    plain = perturbation_influences(objective, factors, rows, route="jacobian")
    monkeypatch.setattr(perturbation, "_FEW_NUMBERS", 0)
    by_func = perturbation_influences(objective, factors, rows, route="jacobian")
    assert_close(plain, by_func, rtol=1e-12, atol=1e-14)


def test_the_mixed_jacobian_of_several_inputs_is_refused(record):
    objective, factors, (numbers, token, y) = record
    with pytest.raises(ModelError, match="single input tensor; use route='autograd'"):
        perturbation_influences(objective, factors, Rows((numbers, token), y), route="jacobian")


@pytest.mark.parametrize("route", ["layered", "jacobian"])
def test_routes_that_take_inputs_are_refused_in_the_output_of_a_module(record, route):
    objective, factors, (numbers, token, y) = record
    with pytest.raises(ModelError, match=f"route='{route}' takes inputs; with wrt='embed'"):
        perturbation_influences(
            objective, factors, Rows((numbers, token), y), wrt="embed", route=route
        )


def expected_for_numbers(objective, factors, numbers, token, y):
    parameters = list(objective.module.parameters())
    numbers = numbers.clone().requires_grad_()
    loss = F.cross_entropy(objective.module(numbers, token), y, reduction="sum")
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return torch.stack(
        [torch.autograd.grad(flat @ s, numbers, retain_graph=True)[0] for s in factors]
    )


def test_tokens_alone_have_no_derivative():
    _, objective, rows, factors = problem("tokens")
    with pytest.raises(ModelError, match=r"torch\.int64.*floating-point input"):
        perturbation_influences(objective, factors, rows)


# What must not matter -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("route", ["layered", "autograd"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_of_factors_change_nothing(route, chunk):
    _, objective, rows, factors = problem("deep", k=10)
    whole = perturbation_influences(objective, factors, rows, route=route)
    parts = perturbation_influences(objective, factors, rows, route=route, chunk=chunk)
    assert_close(parts, whole, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("route", ["layered", "autograd", "jacobian"])
def test_blocks_of_rows_change_nothing(route, monkeypatch):
    _, objective, few, factors = problem("deep")
    rows = few[torch.arange(40) % len(few)]
    whole = perturbation_influences(objective, factors, rows, route=route)
    for module in ("perturbation", "layered"):
        monkeypatch.setattr(f"influence_dag.influence.{module}._NUMBERS", 1)
    blocks = perturbation_influences(objective, factors, rows, route=route)
    assert_close(blocks, whole, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("no_second_way")
@pytest.mark.parametrize("route", ["layered", "autograd", "jacobian"])
def test_more_factors_than_parameters(route):
    _, objective, rows, factors = problem("mlp", k=60)
    assert len(factors) > objective.size
    each = [perturbation_influences(objective, s[None], rows, route=route) for s in factors]
    whole = perturbation_influences(objective, factors, rows, route=route)
    assert_close(whole, torch.cat(each), rtol=1e-10, atol=1e-14)
    gradients = per_sample_gradients(objective, rows)
    one_by_one = torch.cat([influences(s[None], gradients) for s in factors])
    assert_close(influences(factors, gradients), one_by_one, rtol=1e-10, atol=1e-14)


def test_float32_answers_do_not_depend_on_threads_or_how_the_work_is_cut(digits_run):
    objective, train, factors = digits_run
    factors, train = factors[:50], train[:301]
    up, perturbed, threads = [], [], torch.get_num_threads()
    try:
        for number, cut, batch_size in ((1, 50, 512), (2, 7, 64)):
            torch.set_num_threads(number)
            gradients = per_sample_gradients(objective, train, batch_size=batch_size)
            up.append(torch.cat([influences(s, gradients) for s in factors.split(cut)]))
            perturbed.append(
                torch.cat(
                    [perturbation_influences(objective, s, train) for s in factors.split(cut)]
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert relative(up[1], up[0]) < 5e-6
    assert relative(perturbed[1], perturbed[0]) < 5e-6


def test_dense_gradients_and_captured_ones_give_the_same_influences():
    _, objective, rows, factors = problem("images")
    gradients = per_sample_gradients(objective, rows)
    assert_close(influences(factors, gradients), influences(factors, gradients.dense()))
