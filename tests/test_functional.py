import enum
import subprocess
import sys
import warnings

import pytest
import reference
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import influence_dag as idag
from influence_dag import (
    InverseHvpResult,
    TorchTwiceDifferentiable,
    compute_influence_factors,
    compute_influences,
    solve_hvp,
)
from influence_dag.curvature import DenseCurvature, Hessian
from influence_dag.errors import IndefiniteError, ModelError, NotConvergedError
from influence_dag.functional import sizes
from influence_dag.functional.inversion import Inversion
from influence_dag.gradients import found_layouts
from influence_dag.losses import reduced_loss
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Nystroem, build
from influence_dag.solvers.eigenbasis import Eigenbasis
from influence_dag.solvers.ekfac import KroneckerFactorization
from influence_dag.solvers.kronecker_scores import RotatedGradients

FEATURES, OUTPUTS, TRAIN, TEST = 4, 2, 23, 5


def _data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    return x, x[:, :OUTPUTS].tanh() + 0.1 * torch.randn(n, OUTPUTS, generator=generator)


@pytest.fixture
def train():
    return _data(TRAIN, 0)


@pytest.fixture
def test():
    return _data(TEST, 1)


@pytest.fixture
def training_data_loader(train):
    return DataLoader(TensorDataset(*train), batch_size=5)


@pytest.fixture
def test_data_loader(test):
    return DataLoader(TensorDataset(*test), batch_size=2)


@pytest.fixture
def model():
    # Linear with squared loss: the Hessian is positive definite without regularisation.
    torch.manual_seed(0)
    return nn.Linear(FEATURES, OUTPUTS)


@pytest.fixture
def wrapped_model(model):
    return TorchTwiceDifferentiable(model, nn.functional.mse_loss, torch.device("cpu"))


EXACT = 2e-6
LOOSE = 0.02  # rtol=0.01, and a step of a series of 1e-4
EXAMPLES = [
    pytest.param({}, 0.0, EXACT, id="default"),
    pytest.param({"inversion_method": "cg"}, 0.0, EXACT, id="cg"),
    pytest.param(
        {
            "inversion_method": "cg",
            "hessian_regularization": 1e-4,
            "maxiter": 100,
            "rtol": 0.01,
        },
        1e-4,
        LOOSE,
        id="cg-with-settings",
    ),
    *(
        pytest.param(
            {"inversion_method": name, "hessian_regularization": damping},
            damping,
            tolerance,
            id=f"{name}-{damping:g}",
        )
        for name, tolerance in [("direct", EXACT), ("cg", EXACT), ("lissa", LOOSE)]
        for damping in (1e-4, 0.1)
    ),
    pytest.param({"inversion_method": "lissa"}, 0.0, LOOSE, id="lissa"),
    pytest.param(
        {"inversion_method": "arnoldi", "rank_estimate": 10}, 0.0, 2e-5, id="arnoldi-all-pairs"
    ),
]
examples = pytest.mark.parametrize(("arguments", "damping", "tolerance"), EXAMPLES)


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@examples
def test_the_documented_calls_for_influences(
    arguments,
    damping,
    tolerance,
    model,
    train,
    test,
    wrapped_model,
    training_data_loader,
    test_data_loader,
):
    values = compute_influences(wrapped_model, training_data_loader, test_data_loader, **arguments)
    assert values.shape == (TEST, TRAIN)
    expected = reference.influences(model, nn.functional.mse_loss, train, test, damping)
    assert relative_error(values, expected) <= tolerance


@examples
def test_the_documented_calls_for_perturbation_influences(
    arguments,
    damping,
    tolerance,
    model,
    train,
    test,
    wrapped_model,
    training_data_loader,
    test_data_loader,
):
    values = compute_influences(
        wrapped_model,
        training_data_loader,
        test_data_loader,
        influence_type="perturbation",
        **arguments,
    )
    assert values.shape == (TEST, TRAIN, FEATURES)
    expected = reference.perturbation_influences(
        model, nn.functional.mse_loss, train, test, damping
    )
    assert relative_error(values, expected) <= tolerance


@examples
def test_the_documented_calls_for_influence_factors(
    arguments,
    damping,
    tolerance,
    model,
    train,
    test,
    wrapped_model,
    training_data_loader,
    test_data_loader,
):
    influence_factors = compute_influence_factors(
        wrapped_model, training_data_loader, test_data_loader, **arguments
    )
    assert isinstance(influence_factors, InverseHvpResult)
    assert isinstance(influence_factors.info, dict)
    expected = reference.influence_factors(model, nn.functional.mse_loss, train, test, damping)
    assert relative_error(influence_factors.x, expected) <= tolerance


# Solving -----------------------------------------------------------------------------------------

SOLVES = [
    pytest.param("direct", {}, EXACT, id="direct"),
    pytest.param("cg", {"x0": None, "rtol": 1e-7, "atol": 1e-7, "maxiter": None}, EXACT, id="cg"),
    pytest.param(
        "lissa",
        {"maxiter": 1000, "dampen": 0.0, "scale": 10.0, "h0": None, "rtol": 1e-4},
        LOOSE,
        id="lissa",
    ),
    pytest.param(
        "arnoldi",
        {"rank_estimate": 10, "tol": 1e-6, "eigen_computation_on_gpu": False},
        2e-5,
        id="arnoldi",
    ),
]


@pytest.mark.parametrize("damping", [None, 0.0, 0.1])
@pytest.mark.parametrize(("name", "arguments", "tolerance"), SOLVES)
def test_the_documented_calls_of_solve_hvp(
    name, arguments, tolerance, damping, model, train, wrapped_model, training_data_loader
):
    b = torch.randn(3, wrapped_model.num_params, generator=torch.Generator().manual_seed(2))
    if damping is not None:
        arguments = arguments | {"hessian_perturbation": damping}
    result = solve_hvp(name, wrapped_model, training_data_loader, b, **arguments)
    H = reference.hessian(model, nn.functional.mse_loss, *train)
    expected = reference.damped_solve(H, b, damping or 0.0)
    assert relative_error(result.x, expected) <= tolerance


def test_right_hand_sides_are_real_numbers_without_a_graph(wrapped_model, training_data_loader):
    b = torch.ones(2, wrapped_model.num_params, requires_grad=True)
    assert not solve_hvp("direct", wrapped_model, training_data_loader, b).x.requires_grad
    with pytest.raises(TypeError, match=r"b is complex64 .*solve for b\.real and b\.imag"):
        solve_hvp("direct", wrapped_model, training_data_loader, 1j * b)


@pytest.mark.parametrize(("method", "name"), [("cg", "x0"), ("lissa", "h0")])
def test_first_guesses_are_real_numbers_without_a_graph(
    method, name, wrapped_model, training_data_loader
):
    guess = torch.ones(wrapped_model.num_params, requires_grad=True)
    settings = {"scale": 10.0} if method == "lissa" else {}

    def solved(start):
        loader, b = training_data_loader, torch.ones(2, wrapped_model.num_params)
        return solve_hvp(method, wrapped_model, loader, b, **settings, **{name: start})

    assert not solved(guess).x.requires_grad
    with pytest.raises(TypeError, match=f"{name} is complex64 .*real numbers are wanted"):
        solved(1j * guess)


def test_direct_reports_the_hessian(model, train, wrapped_model, training_data_loader):
    b = torch.ones(1, wrapped_model.num_params)
    x, info = solve_hvp("direct", wrapped_model, training_data_loader, b)
    H = reference.hessian(model, nn.functional.mse_loss, *train)
    assert x.shape == b.shape
    assert relative_error(info["hessian"], H) <= 1e-6


def test_cg_reports_one_entry_a_row(wrapped_model, training_data_loader):
    b = torch.randn(3, wrapped_model.num_params)
    info = solve_hvp("cg", wrapped_model, training_data_loader, b).info
    assert info["optimal"].tolist() == [True] * 3
    assert info["niter"].shape == info["gamma"].shape == (3,)
    assert (info["gamma"] <= 1e-6 * b.norm(dim=1)).all()


def test_cg_starts_at_x0(wrapped_model, training_data_loader):
    b = torch.randn(3, wrapped_model.num_params)
    x = solve_hvp("direct", wrapped_model, training_data_loader, b).x
    result = solve_hvp("cg", wrapped_model, training_data_loader, b, x0=x, rtol=1e-5)
    assert result.info["niter"].tolist() == [0, 0, 0]
    assert torch.equal(result.x, x)


def test_lissa_starts_at_h0_which_is_scale_times_x(wrapped_model, training_data_loader):
    b = torch.randn(3, wrapped_model.num_params)
    x = solve_hvp("direct", wrapped_model, training_data_loader, b).x
    result = solve_hvp("lissa", wrapped_model, training_data_loader, b, scale=10.0, h0=10 * x)
    assert result.info["niter"].tolist() == [1, 1, 1]
    assert relative_error(result.x, x.double()) <= 1e-5
    with pytest.raises(ValueError, match="h0 is a first guess for scale"):
        solve_hvp("lissa", wrapped_model, training_data_loader, b, h0=10 * x)


@pytest.mark.parametrize("method", ["direct", "cg", "ekfac", "identity"])
def test_the_automatic_damping_is_the_mean_size_of_eigenvalues(
    method, model, train, wrapped_model, training_data_loader, test_data_loader
):
    def factors(damping):
        return compute_influence_factors(
            wrapped_model,
            training_data_loader,
            test_data_loader,
            inversion_method=method,
            hessian_regularization=damping,
        )

    told = factors("auto")
    H = reference.hessian(model, nn.functional.mse_loss, *train)  # linear: Gauss-Newton's as well
    expected = 0.0 if method == "identity" else torch.linalg.eigvalsh(H).abs().mean().item()
    assert told.info["damping"] == pytest.approx(expected, rel=1e-5)
    assert relative_error(told.x, factors(told.info["damping"]).x.double()) <= 1e-6


def test_solutions_that_overflow_are_refused_by_row(wrapped_model, training_data_loader):
    b = torch.ones(3, wrapped_model.num_params)
    b[1] *= 3e38
    with pytest.raises(NotConvergedError, match=r"right-hand sides 1 are not finite.*larger damp"):
        solve_hvp("direct", wrapped_model, training_data_loader, b, hessian_perturbation=1e-4)


def test_numbers_that_the_model_cannot_hold_are_refused(wrapped_model, training_data_loader):
    b = torch.ones(1, wrapped_model.num_params, dtype=torch.float64)
    blocks = {"blocks": [["weight"], ["bias"]], "block_damping": {"1": 1e39}}
    for settings in ({"hessian_perturbation": 1e39}, {"hessian_perturbation": 1.0} | blocks):
        with pytest.raises(ValueError, match=r"damping 1e\+39 is more than torch.float32 can hold"):
            solve_hvp("cg", wrapped_model, training_data_loader, b, **settings)
    with pytest.raises(
        ValueError, match=r"b has entries .* not finite in the model's torch.float32"
    ):
        solve_hvp("cg", wrapped_model, training_data_loader, 1e300 * b)


def test_several_dampings_are_for_as_many_calls(training_data_loader, wrapped_model):
    b = torch.ones(1, wrapped_model.num_params)
    with pytest.raises(TypeError, match=r"damping is a list; .*call once for each"):
        solve_hvp("cg", wrapped_model, training_data_loader, b, hessian_perturbation=[0.1, 1.0])


def test_lissa_reports_shares_of_the_last_step(wrapped_model, training_data_loader):
    b = torch.randn(3, wrapped_model.num_params)
    info = solve_hvp("lissa", wrapped_model, training_data_loader, b, scale=10.0).info
    assert info["max_perc_residual"].shape == info["mean_perc_residual"].shape == (3,)
    assert (info["mean_perc_residual"] <= info["max_perc_residual"]).all()


def test_arnoldi_reports_its_eigenpairs(model, train, wrapped_model, training_data_loader):
    b = torch.ones(1, wrapped_model.num_params)
    info = solve_hvp("arnoldi", wrapped_model, training_data_loader, b, rank_estimate=4).info
    H = reference.hessian(model, nn.functional.mse_loss, *train)
    V, values = info["eigenvectors"].double(), info["eigenvalues"].double()
    assert V.shape == (wrapped_model.num_params, 4)
    assert (H @ V - V * values).norm() <= 1e-5 * values[0]
    torch.testing.assert_close(values, torch.linalg.eigvalsh(H).flip(0)[:4], rtol=1e-5, atol=0)


def test_the_damping_may_have_either_name(wrapped_model, training_data_loader, test_data_loader):
    loaders = training_data_loader, test_data_loader
    one = compute_influences(
        wrapped_model, *loaders, inversion_method="arnoldi", hessian_regularization=0.1
    )
    other = compute_influences(
        wrapped_model, *loaders, inversion_method="arnoldi", hessian_perturbation=0.1
    )
    assert torch.equal(one, other)


def test_one_vector_gives_one_vector(wrapped_model, training_data_loader):
    b = torch.randn(wrapped_model.num_params)
    one = solve_hvp("direct", wrapped_model, training_data_loader, b).x
    block = solve_hvp("direct", wrapped_model, training_data_loader, b[None]).x
    assert torch.equal(one, block[0])


# Every method on a network -----------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, 3)).double()


@pytest.fixture
def classification():
    def rows(n, seed):
        x, y = _data(n, seed)
        return x.double(), (y[:, 0] > 0).long() + (y[:, 1] > 0).long()

    return rows(TRAIN, 0), rows(TEST, 1)


NETWORK_METHODS = {
    "direct": {},
    "cg": {},
    "lissa": {"rtol": 1e-7},
    "arnoldi": {"rank_estimate": 100},
    "nystroem": {"curvature": "gauss_newton"},
}


def test_memory_that_torch_keeps_of_a_gpu_for_later_is_free(monkeypatch):
    has = {"mem_get_info": (70, 100), "memory_reserved": 20, "memory_allocated": 15}
    for name, value in has.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert sizes.free_bytes(torch.device("cuda")) == 70 + 20 - 15


def test_a_perturbation_tensor_that_does_not_fit_is_refused_before_anything_is_solved(
    monkeypatch, wrapped_model, training_data_loader, test_data_loader
):
    loaders, size = (training_data_loader, test_data_loader), TEST * TRAIN * FEATURES * 4
    asked = {"influence_type": "perturbation", "hessian_regularization": 0.1}
    monkeypatch.setattr(sizes, "free_bytes", lambda device: size)
    assert compute_influences(wrapped_model, *loaders, **asked).nbytes == size
    monkeypatch.setattr(sizes, "free_bytes", lambda device: size - 1)
    monkeypatch.setattr(Inversion, "factors", lambda *_, **__: pytest.fail("it was solved"))
    with pytest.raises(ModelError, match=r"of 5 × 23 rows with 4 features take 1\.797 KiB, and"):
        compute_influences(wrapped_model, *loaders, **asked)
    each = {"blocks": [["weight"], ["bias"]], "per_block": True}
    monkeypatch.setattr(sizes, "free_bytes", lambda device: 2 * size - 1)
    with pytest.raises(ModelError, match=r"4 features, in 2 shares, take 3\.594 KiB, and"):
        compute_influences(wrapped_model, *loaders, **asked, **each)


@pytest.mark.parametrize("kind", ["up", "perturbation"])
@pytest.mark.parametrize("method", NETWORK_METHODS)
def test_every_method_on_a_network(method, kind, network, classification):
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows), batch_size=4) for rows in (train, test)]
    wrapped = TorchTwiceDifferentiable(network, nn.CrossEntropyLoss())
    settings = NETWORK_METHODS[method]
    arguments = {"influence_type": kind, "hessian_regularization": 1.0} | settings
    values = compute_influences(wrapped, *loaders, inversion_method=method, **arguments)
    if "curvature" in settings:
        arguments = {"influence_type": kind, "hessian_regularization": 1.0} | settings
        expected = compute_influences(wrapped, *loaders, inversion_method="direct", **arguments)
    else:
        formula = reference.influences if kind == "up" else reference.perturbation_influences
        expected = formula(network, nn.functional.cross_entropy, train, test, 1.0)
    assert relative_error(values, expected) <= 1e-4


def test_gauss_newton_is_the_hessian_of_a_linear_model_only(
    model, train, test, wrapped_model, network, classification
):
    loaders = [DataLoader(TensorDataset(*rows)) for rows in (train, test)]
    values = compute_influences(wrapped_model, *loaders, curvature="gauss_newton")
    expected = reference.influences(model, nn.functional.mse_loss, train, test, 0.0)
    assert relative_error(values, expected) <= EXACT
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows)) for rows in (train, test)]
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    values = compute_influences(
        wrapped, *loaders, curvature="gauss_newton", hessian_regularization=0.1
    )
    expected = reference.influences(network, nn.functional.cross_entropy, train, test, 0.1)
    assert relative_error(values, expected) >= 1e-2


@pytest.mark.parametrize("kind", ["up", "perturbation"])
@pytest.mark.parametrize("method", ["direct", "cg"])
def test_blocks_leave_out_what_couples_them_and_add_up(method, kind, network, classification):
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows)) for rows in (train, test)]
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    arguments = {
        "influence_type": kind,
        "inversion_method": method,
        "hessian_regularization": 1.0,
        "blocks": "layer",
        "block_damping": {"2": 0.5},
    }
    values = compute_influences(wrapped, *loaders, **arguments)
    shares = compute_influences(wrapped, *loaders, per_block=True, **arguments)
    assert list(shares) == ["0", "2"]
    torch.testing.assert_close(shares["0"] + shares["2"], values)

    loss = nn.functional.cross_entropy
    H = reference.hessian(network, loss, *train)
    first = sum(p.numel() for p in network[0].parameters())
    H[:first, first:] = H[first:, :first] = 0
    H.diagonal()[first:] -= 0.5
    rhs = reference.per_sample_gradients(network, loss, *test)
    factors = reference.damped_solve(H, rhs, 1.0)
    if kind == "up":
        expected = factors @ reference.per_sample_gradients(network, loss, *train).T
    else:
        expected = reference.mixed_products(network, loss, factors, *train)
    assert relative_error(values, expected) <= 1e-5


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        nn.functional.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda output, target: nn.functional.cross_entropy(output, target, reduction="none"),
    ],
    ids=["name", "function", "module", "sum", "per-sample"],
)
def test_any_way_to_write_a_loss(loss, network, classification):
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows), batch_size=4) for rows in (train, test)]
    wrapped = TorchTwiceDifferentiable(network, loss, "cpu")
    values = compute_influences(wrapped, *loaders, hessian_regularization=0.5)
    expected = reference.influences(network, nn.functional.cross_entropy, train, test, 0.5)
    assert relative_error(values, expected) <= 1e-10


def test_a_measurement_takes_the_place_of_the_test_loss(network, classification):
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows), batch_size=4) for rows in (train, test)]

    def logit(output, target):
        return output[:, 0]

    wrapped = TorchTwiceDifferentiable(network, "cross_entropy", measurement=logit)
    factors = compute_influence_factors(wrapped, *loaders, hessian_regularization=0.5).x
    rhs = reference.per_sample_gradients(network, lambda o, t: logit(o, t).mean(), *test)
    H = reference.hessian(network, nn.functional.cross_entropy, *train)
    assert relative_error(factors, reference.damped_solve(H, rhs, 0.5)) <= 1e-10


def test_without_test_data_training_rows_are_the_tests(
    model, train, wrapped_model, training_data_loader
):
    values = compute_influences(wrapped_model, training_data_loader)
    expected = reference.influences(model, nn.functional.mse_loss, train, train, 0.0)
    assert relative_error(values, expected) <= 2e-6


def test_other_rows_can_be_scored_with_the_same_hessian(
    model, train, test, wrapped_model, training_data_loader, test_data_loader
):
    few = DataLoader(TensorDataset(*(t[3:7] for t in train)))
    some = compute_influences(wrapped_model, training_data_loader, test_data_loader, few)
    expected = reference.influences(model, nn.functional.mse_loss, train, test, 0.0)[:, 3:7]
    assert relative_error(some, expected) <= 2e-6


@pytest.mark.parametrize("kind", ["up", "perturbation"])
def test_saved_factors_serve_other_subsets_of_the_training_rows(
    kind, model, train, test, wrapped_model, training_data_loader, test_data_loader, tmp_path
):
    made = compute_influence_factors(wrapped_model, training_data_loader, test_data_loader)
    torch.save(made.x, tmp_path / "factors.pt")
    factors = torch.load(tmp_path / "factors.pt")
    subset = idag.Rows.from_loader(DataLoader(TensorDataset(*(t[3:7] for t in train))))
    formula = reference.influences if kind == "up" else reference.perturbation_influences
    expected = formula(model, nn.functional.mse_loss, train, test, 0.0)[:, 3:7]
    if kind == "up":
        gradients = idag.per_sample_gradients(wrapped_model.objective, subset)
        values = idag.influences(factors, gradients)
    else:
        values = idag.perturbation_influences(wrapped_model.objective, factors, subset)
    assert relative_error(values, expected) <= EXACT


@pytest.mark.parametrize("name", ["direct", "cg", "lissa", "arnoldi", "nystroem", "ekfac", "kfac"])
def test_a_stored_factorisation_serves_other_test_rows_and_dampings(
    name, network, classification, tmp_path
):
    train, test = classification
    objective = TorchTwiceDifferentiable(network, "cross_entropy").objective
    curvature = idag.GaussNewton(objective, idag.Rows(*train))
    settings = {"rank": 50} if name in ("arnoldi", "nystroem") else {}
    method = build(name, settings)
    torch.save(method.factorize(curvature).tensors(), tmp_path / "factorisation.pt")
    restored = method.restore(torch.load(tmp_path / "factorisation.pt"), curvature)
    gradients = idag.per_sample_gradients(objective, idag.Rows(*test)).dense()
    for damping in (0.5, 1.0):
        x = restored.solve(gradients, damping=damping).x
        fresh = method.factorize(curvature).solve(gradients, damping=damping).x
        assert relative_error(x, fresh) <= 1e-12
        if name not in ("ekfac", "kfac"):
            expected = reference.damped_solve(curvature.dense(), gradients, damping)
            assert relative_error(x, expected) <= 5e-3


def test_parameters_are_read_at_each_call(model, train, test, training_data_loader):
    wrapped = TorchTwiceDifferentiable(model, nn.functional.mse_loss)
    with torch.no_grad():
        model.weight.mul_(3)
    test_data = DataLoader(TensorDataset(*test))
    values = compute_influences(wrapped, training_data_loader, test_data)
    expected = reference.influences(model, nn.functional.mse_loss, train, test, 0.0)
    assert relative_error(values, expected) <= 2e-6


# Names and refusals ------------------------------------------------------------------------------


ROUGH = {"scale": 2.0, "rtol": 1e-2}
KEYWORDS = [  # method, settings as other libraries call them, a change of them
    ("direct", {}, {"hessian_perturbation": 0.6}),
    ("direct", {}, {"curvature": "gauss_newton"}),
    ("direct", {}, {"blocks": "layer"}),
    ("direct", {"blocks": "layer"}, {"block_damping": {"2": 1.5}}),
    ("cg", {}, {"rtol": 1e-1, "preconditioner": "none"}),
    ("cg", {"preconditioner": "none"}, {"atol": 1e-1}),
    ("cg", {"preconditioner": "none"}, {"x0": 0.1}),
    ("cg", {"preconditioner": "none"}, {"maxiter": 2, "on_failure": "warn"}),
    ("lissa", ROUGH, {"maxiter": 2, "on_failure": "warn"}),
    ("lissa", ROUGH, {"dampen": 0.1}),
    ("lissa", ROUGH, {"scale": 3.0}),
    ("lissa", ROUGH, {"h0": 0.1}),
    ("lissa", ROUGH, {"rtol": 1e-1}),
    ("arnoldi", {"rank_estimate": 5}, {"rank_estimate": 6}),
    ("arnoldi", {"rank_estimate": 5}, {"tol": 0.5}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "settings", "change"), KEYWORDS)
def test_each_keyword_has_an_effect(name, settings, change, network, classification):
    train, _ = classification
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    b = torch.randn(2, wrapped.num_params).double()
    change = {key: b * value if key in ("x0", "h0") else value for key, value in change.items()}

    def x(arguments):
        loader = DataLoader(TensorDataset(*train), batch_size=4)
        return solve_hvp(name, wrapped, loader, b, **{"hessian_perturbation": 0.5} | arguments).x

    assert relative_error(x(settings | change), x(settings)) >= 1e-14


def test_influences_compute_no_residual_that_nobody_is_told(network, classification, monkeypatch):
    seen = []
    monkeypatch.setattr("influence_dag.functional.inversion.residuals", lambda *_, **__: seen)
    train, test = classification
    arguments = TorchTwiceDifferentiable(network, "cross_entropy"), [train], [test]
    assert (
        idag.compute_influence_factors(*arguments, hessian_regularization=1.0).info["residual"]
        is seen
    )
    monkeypatch.setattr("influence_dag.functional.inversion.residuals", None)  # not to be called
    assert idag.compute_influences(*arguments, hessian_regularization=1.0).isfinite().all()


def test_the_small_eigenproblems_are_solved_where_the_caller_says(
    network, classification, monkeypatch
):
    """Without a GPU both places are the processor: what is asked for is seen on its way there."""
    from influence_dag.solvers import arnoldi

    seen, search = [], arnoldi.leading_eigenpairs

    def noted(curvature, rank, **settings):
        seen.append(settings["small_device"])
        return search(curvature, rank, **settings)

    monkeypatch.setattr(arnoldi, "leading_eigenpairs", noted)
    monkeypatch.setattr(DenseCurvature, "device", torch.device("cpu", 0))
    train, _ = classification
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    b, loader = torch.ones(1, wrapped.num_params).double(), [train]
    settings = {"hessian_perturbation": 0.5, "rank_estimate": 3}
    for there in (False, True):
        solve_hvp("arnoldi", wrapped, loader, b, eigen_computation_on_gpu=there, **settings)
    assert seen == [torch.device("cpu"), torch.device("cpu", 0)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("nystroem", {"rank": 5, "curvature": "gauss_newton"}),
        ("arnoldi", {"rank": 5}),
        ("arnoldi", {"rank": 5, "complement": "damping"}),
        ("identity", {}),
        ("ekfac", {}),
        ("kfac", {}),
    ],
)
def test_influences_by_a_shorter_way_are_those_of_the_factors(
    method, settings, network, classification
):
    (x, y), test = classification
    weighted = [(x, y, torch.linspace(0.1, 2, len(y)).double())]
    arguments = TorchTwiceDifferentiable(network, "cross_entropy"), weighted, [test]
    settings = {"inversion_method": method, "hessian_regularization": 0.3} | settings
    factors = idag.compute_influence_factors(*arguments, **settings).x
    gradients = reference.per_sample_gradients(network, nn.functional.cross_entropy, x, y)
    expected = factors @ (gradients * weighted[0][2][:, None]).T
    assert relative_error(compute_influences(*arguments, **settings), expected) <= 1e-9


def test_what_is_found_of_a_network_is_found_once_for_both_sets_of_rows(
    network, classification, monkeypatch
):
    train, test = classification
    wrapped = TorchTwiceDifferentiable(network.float(), "cross_entropy")
    copies, layouts = [], []
    in_float64, found = Objective.in_float64, found_layouts._found_layout
    monkeypatch.setattr(
        Objective, "in_float64", lambda self: copies.append(self) or in_float64(self)
    )
    monkeypatch.setattr(
        found_layouts, "_found_layout", lambda *of: layouts.append(of) or found(*of)
    )
    loaders = [(train[0].float(), train[1])], [(test[0].float(), test[1])]
    settings = {"inversion_method": "ekfac", "hessian_regularization": 0.1}
    compute_influences(wrapped, *loaders, **settings)
    assert (len(copies), len(layouts)) == (1, 1)


@pytest.mark.parametrize("rows", [40, 4000])
def test_kronecker_factors_are_asked_in_their_eigenbasis(rows, monkeypatch):
    """Pairs of training rows are rotated where these are few; factors rotated back where not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10)).double()
    x, y = torch.randn(rows, 30).double(), torch.arange(rows) % 10
    arguments = TorchTwiceDifferentiable(network, "cross_entropy"), [(x, y)], [(x[:30], y[:30])]
    settings = {"inversion_method": "ekfac", "hessian_regularization": 0.1, "fisher": "empirical"}
    factors = idag.compute_influence_factors(*arguments, **settings).x
    gradients = reference.per_sample_gradients(network, nn.functional.cross_entropy, x, y)
    monkeypatch.setattr(KroneckerFactorization, "solve", None)  # not to be called
    back = [] if rows == 40 else [30]
    seen, solved = [], RotatedGradients.solved
    monkeypatch.setattr(
        RotatedGradients,
        "solved",
        lambda self, **at: seen.append(len(self.gradients)) or solved(self, **at),
    )
    found = compute_influences(*arguments, **settings)
    assert relative_error(found, factors @ gradients.T) <= 1e-9
    assert seen == back


@pytest.mark.parametrize("method", ["direct", "nystroem"])
def test_a_warning_of_negative_curvature_points_to_the_call(method, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    rows = [(torch.randn(30, 4).double(), torch.arange(30) % 3)]
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    H = Hessian(wrapped.objective, Rows(*rows[0])).dense()
    damping = -1.5 * torch.linalg.eigvalsh(H)[0].item()
    if method == "nystroem":  # a sketch has no negative eigenvalues; any basis may
        values, vectors = torch.linalg.eigh(H)
        basis = Eigenbasis(vectors[:, :30], values[:30])
        monkeypatch.setattr(Nystroem, "factorize", lambda *_: basis)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compute_influences(wrapped, rows, inversion_method=method, hessian_regularization=damping)
    assert [(each.filename, "smallest eigenvalue" in str(each.message)) for each in seen] == [
        (__file__, True)
    ]


def test_names_may_be_enumerations_or_of_any_case(
    wrapped_model, training_data_loader, test_data_loader
):
    class InfluenceType(enum.Enum):
        Up = "up"

    class InversionMethod(enum.Enum):
        Direct = "direct"

    plain = compute_influences(wrapped_model, training_data_loader, test_data_loader)
    for kind, method in [(InfluenceType.Up, InversionMethod.Direct), ("UP", "Direct")]:
        values = compute_influences(
            wrapped_model,
            training_data_loader,
            test_data_loader,
            influence_type=kind,
            inversion_method=method,
        )
        assert torch.equal(values, plain)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"influence_type": "down"}, ValueError, r"influence_type='down' .* one of up, perturb"),
        ({"inversion_method": "newton"}, ValueError, r"inversion_method='newton' .*direct"),
        ({"rtol": 1e-3}, TypeError, r"'direct' has no setting 'rtol'; it accepts damping"),
        (
            {"inversion_method": "cg", "scale": 10.0},
            TypeError,
            r"'cg' has no setting 'scale'; it accepts rtol, atol, maxiter",
        ),
    ],
)
def test_wrong_names_are_refused(
    arguments, error, message, wrapped_model, training_data_loader, test_data_loader
):
    with pytest.raises(error, match=message):
        compute_influences(wrapped_model, training_data_loader, test_data_loader, **arguments)


def test_wrong_names_are_refused_before_any_data_is_read(wrapped_model):
    def unread():
        raise AssertionError("data was read")
        yield

    for arguments in ({"inversion_method": "newton"}, {"curvature": "fisher"}, {"rtol": 1.0}):
        with pytest.raises((ValueError, TypeError), match=r"unknown|no setting"):
            compute_influences(wrapped_model, unread(), **arguments)


def test_a_damping_of_a_block_that_is_not_there_is_refused(wrapped_model, training_data_loader):
    with pytest.raises(ValueError, match="dampings names bias; the blocks are full"):
        compute_influences(wrapped_model, training_data_loader, block_damping={"bias": 0.1})


def test_data_are_read_once(model, train, wrapped_model):
    once = iter(DataLoader(TensorDataset(*train), batch_size=5))
    values = compute_influences(wrapped_model, once)
    expected = reference.influences(model, nn.functional.mse_loss, train, train, 0.0)
    assert relative_error(values, expected) <= EXACT


def test_a_right_hand_side_of_the_wrong_width_is_refused(wrapped_model, training_data_loader):
    with pytest.raises(ValueError, match=r"b has shape \(3, 7\); the model has 10 trainable"):
        solve_hvp("direct", wrapped_model, training_data_loader, torch.ones(3, 7))


def test_active_dropout_is_refused(training_data_loader, test_data_loader):
    module = nn.Sequential(nn.Linear(FEATURES, OUTPUTS), nn.Dropout(0.5))
    wrapped = TorchTwiceDifferentiable(module, nn.functional.mse_loss)
    with pytest.raises(ModelError, match=r"call module.eval\(\) first"):
        compute_influences(wrapped, training_data_loader, test_data_loader)


def test_too_little_damping_is_an_error_with_a_cure(network, classification):
    train, test = classification
    loaders = [DataLoader(TensorDataset(*rows)) for rows in (train, test)]
    wrapped = TorchTwiceDifferentiable(network, "cross_entropy")
    with pytest.raises(IndefiniteError) as caught:
        compute_influences(wrapped, *loaders)
    damping = caught.value.suggested_damping
    compute_influences(wrapped, *loaders, hessian_regularization=damping)


def test_class_weights_count_each_sample_by_the_weight_of_its_class():
    weight = torch.tensor([1.0, 5.0, 0.5])
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    plain = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    per_sample = reduced_loss(torch.nn.CrossEntropyLoss(weight=weight))
    torch.testing.assert_close(per_sample(outputs, targets), weight[targets] * plain)


FIRST_CALLS = """
import sys
import torch
import influence_dag as idag
network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
model = idag.TorchTwiceDifferentiable(network, torch.nn.functional.cross_entropy)
rows = [(torch.randn(9, 3), torch.randint(2, (9,)))]
for method in ("direct", "cg", "arnoldi", "nystroem", "ekfac"):
    idag.compute_influences(model, rows, inversion_method=method, hessian_regularization=1.0)
    slow = {"torch._dynamo.symbolic_convert", "sympy"} & sys.modules.keys()
    assert not slow, (method, slow)
for others in (
    {"inversion_method": "nystroem", "rank": 3, "power_iterations": 0},  # by products
    {"inversion_method": "ekfac", "fisher": "empirical"},
):
    idag.compute_influences(model, rows, hessian_regularization=1.0, **others)
    slow = {"torch._dynamo.symbolic_convert", "sympy"} & sys.modules.keys()
    assert not slow, (others, slow)
network = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 2))
model = idag.TorchTwiceDifferentiable(network, "cross_entropy")
rows = [(torch.randn(9, 30), torch.randint(2, (9,)))]
idag.compute_influences(model, rows, hessian_regularization=9.0, influence_type="perturbation")
assert not {"torch._dynamo.symbolic_convert", "sympy"} & sys.modules.keys()
small = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
model = idag.TorchTwiceDifferentiable(small, "cross_entropy")
rows = [(torch.randn(9, 3), torch.randint(2, (9,)))]
idag.compute_influences(model, rows, hessian_regularization=9.0, influence_type="perturbation")
images = torch.nn.Sequential(torch.nn.Flatten(), *network)
rows = [(torch.randn(9, 5, 6), torch.randint(2, (9,)))]
model = idag.TorchTwiceDifferentiable(images, "cross_entropy")
idag.compute_influences(model, rows, hessian_regularization=9.0, influence_type="perturbation")
from influence_dag.objective import Rows
from influence_dag.objective.modules import fit
from influence_dag.study.model import FitSettings
found = fit(images, "cross_entropy", Rows(*rows[0]), FitSettings(weight_decay=0.1))
assert found.converged
assert not {"torch._dynamo.symbolic_convert", "sympy"} & sys.modules.keys()
"""


def test_the_first_call_of_a_process_imports_no_compiler_and_no_algebra():
    """Nor does the first fit on all rows."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST_CALLS], check=True)


def test_products_that_float32_cannot_hold_are_refused(model, train):
    def scaled(output, target):
        return 1e20 * (output - target).square().mean(1)

    wrapped = TorchTwiceDifferentiable(model, scaled)
    with pytest.raises(ModelError, match=r"test row 0 are not finite .*overflow torch\.float32"):
        compute_influences(wrapped, [train], inversion_method="identity")


@pytest.mark.parametrize("method", ["direct", "cg", "nystroem"])
def test_solutions_found_in_float64_are_infinite_in_no_answer_of_float32(method):
    """Without a damping small problems are solved in float64, whose range is another one."""
    x, y = _data(TRAIN, 0)
    model = TorchTwiceDifferentiable(nn.Linear(FEATURES, OUTPUTS, bias=False), "mse")
    curvature, longer = [(1e-15 * x, y)], [(1e10 * x, y)]
    b = torch.full((1, model.num_params), 1e12)
    told = r"right-hand sides 0.* are not finite: the solve overflows"
    with pytest.raises(NotConvergedError, match=told):
        solve_hvp(method, model, curvature, b)
    with pytest.raises(NotConvergedError, match=told):
        compute_influence_factors(model, curvature, longer, inversion_method=method)
    assert solve_hvp(method, model, curvature, 1e-8 * b).x.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e12])
@pytest.mark.parametrize("method", ["cg", "lissa"])
def test_influences_follow_the_scale_of_the_loss(method, scale):
    """A loss c times as large has c times the influences at c times the damping."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    model = nn.Linear(4, 3)

    def influences(c):
        def scaled(output, target):
            return c * nn.functional.cross_entropy(output, target, reduction="none")

        return compute_influences(
            TorchTwiceDifferentiable(model, scaled),
            [(x, y)],
            inversion_method=method,
            hessian_regularization=0.5 * c,
        )

    torch.testing.assert_close(influences(scale) / scale, influences(1.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("measurement", "said"),
    [
        (lambda f, y: f[:, 0] - f[:, 0].mean(), "not that of its rows"),
        (lambda f, y: f[:, 0] * f[:, 0].argsort(), "not that of its rows"),
        (lambda f, y: nn.functional.dropout(f).sum(1), "the measurement of the same rows differs"),
        (lambda f, y: f[:, 0].detach(), "the measurement does not depend on the parameters"),
    ],
    ids=["centred", "ranked", "random", "detached"],
)
def test_a_measurement_that_is_no_function_of_its_row_is_refused(
    model, train, test, measurement, said
):
    """Each is differentiated on its own: of one that is centred, zero would come."""
    wrapped = TorchTwiceDifferentiable(model, "mse", measurement=measurement)
    with pytest.raises(ModelError, match=said):
        compute_influences(wrapped, [train], [test], hessian_regularization=0.1)


def test_a_loader_that_shuffles_is_refused_for_every_axis_that_its_rows_name(
    wrapped_model, train, test_data_loader
):
    shuffled = DataLoader(TensorDataset(*train), batch_size=5, shuffle=True)
    for others in ({}, {"input_data": test_data_loader}, {"test_data": test_data_loader}):
        with pytest.raises(ModelError, match="in another order when it is read again"):
            compute_influences(wrapped_model, shuffled, hessian_regularization=1.0, **others)
    both = {"test_data": test_data_loader, "input_data": test_data_loader}
    found = compute_influences(wrapped_model, shuffled, hessian_regularization=1.0, **both)
    assert found.shape == (TEST, TEST)


MEANS = {
    "by name": "mse",
    "a function": nn.functional.mse_loss,
    "a module": nn.MSELoss(),
    "one's own": lambda output, target: (output - target).square().mean(),
}


@pytest.mark.parametrize("kind", ["up", "perturbation"])
@pytest.mark.parametrize("which", ["train", "test", "input"])
@pytest.mark.parametrize("loss", MEANS)
def test_a_row_without_a_finite_loss_is_named_whosever_the_loss_is(loss, which, kind):
    names = "train", "test", "input"
    rows = {name: (torch.randn(9, FEATURES), torch.randn(9, 1)) for name in names}
    rows[which][0][7] = torch.nan
    wrapped = TorchTwiceDifferentiable(nn.Linear(FEATURES, 1), MEANS[loss])
    loaders = ([part] for part in rows.values())
    with pytest.raises(ModelError, match="the loss of row 7 is nan"):
        compute_influences(wrapped, *loaders, influence_type=kind, hessian_regularization=1.0)


def test_lists_of_decimals_keep_the_digits_that_they_have():
    tenth = [0.1, 0.3, 0.7, -0.2]
    double = TorchTwiceDifferentiable(nn.Linear(1, 1).double(), "mse")
    numbers = torch.tensor(tenth, dtype=torch.float64)
    lists = [(numbers[:, None], tenth), (numbers[:, None], list(numbers))]
    tensors = [(numbers[:, None], numbers)] * 2
    found, right = (
        compute_influences(double, rows, hessian_regularization=0.1) for rows in (lists, tensors)
    )
    assert torch.equal(found, right)
