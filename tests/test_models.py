import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from influence_dag.datasets.splits import load_split
from influence_dag.errors import ModelError, StudyError
from influence_dag.objective import modules
from influence_dag.objective.objective import Rows
from influence_dag.study.data import DataSettings
from influence_dag.study.model import FitSettings, ModelSettings

ROOT = Path(__file__).parents[1]


def digits(n: int | None = None) -> Rows:
    data = DataSettings(
        train="data/digits/train.csv",
        test="data/digits/test.csv",
        id="id",
        target="label",
        features={"shape": [8, 8], "dims": ["row", "col"], "scale": 0.0625},
    )
    split = load_split(data, "train", ROOT)
    return Rows(torch.as_tensor(split.x["x"][:n]), torch.as_tensor(split.y[:n]))


def regression(n: int = 40, d: int = 5) -> Rows:
    x = torch.randn(n, d, dtype=torch.float64)
    return Rows(x, x @ torch.arange(1.0, d + 1, dtype=torch.float64) + torch.randn(n).double())


def build(name: str = "assets.digits.model:build", seed: int = 0, root: Path = ROOT):
    settings = ModelSettings(build=name, fit=FitSettings(seed=seed))
    return modules.build_module(settings, root, torch.float64)


def small() -> nn.Module:
    """Of 310 parameters: the steps of its fits cost little."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    return network.double()


def penalised_gradient_norm(module: nn.Module, rows: Rows, weight_decay: float) -> float:
    parameters = list(module.parameters())
    loss = F.cross_entropy(module(rows.x), rows.y)
    loss = loss + weight_decay / 2 * sum(p.square().sum() for p in parameters)
    return float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm())


def code(folder: Path, body: str, module: str = "user_model") -> None:
    (folder / f"{module}.py").write_text(body)
    sys.modules.pop(module, None)


# Fitting


@pytest.mark.parametrize(
    ("count", "loss"), [(500, 0.0898), pytest.param(None, 0.1144, marks=pytest.mark.campaign)]
)
def test_the_digits_network_reaches_a_stationary_point(count, loss):
    rows, module = digits(count), build()
    report = modules.fit(module, "cross_entropy", rows, FitSettings(weight_decay=1e-3))
    assert report.converged
    assert report.gradient_norm <= 1e-6
    assert report.loss == pytest.approx(loss, abs=1e-3)
    assert penalised_gradient_norm(module, rows, 1e-3) == pytest.approx(
        report.gradient_norm, abs=1e-9
    )
    assert not module.training


def test_newton_alone_leaves_the_saddle_that_zero_weights_are():
    rows, module = digits(200), build()
    with torch.no_grad():  # all hidden units alike: the gradient cannot tell them apart
        for parameter in module.parameters():
            parameter.copy_(parameter * 1e-3)
    settings = FitSettings(weight_decay=1e-2, max_steps=100)
    report = modules.fit(module, "cross_entropy", rows, settings)
    assert report.gradient_norm <= 1e-6
    assert report.loss < 1.0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_linear_regression_is_the_closed_form(weight_decay):
    rows, module = regression(), nn.Linear(5, 1).double()
    modules.fit(module, "mse", rows, FitSettings(weight_decay=weight_decay, tolerance=1e-10))
    x = torch.cat([rows.x, torch.ones(len(rows), 1)], dim=1).numpy()
    hessian = 2 / len(x) * x.T @ x + weight_decay * np.eye(6)
    expected = np.linalg.solve(hessian, 2 / len(x) * x.T @ rows.y.numpy())
    fitted = torch.cat([module.weight.flatten(), module.bias]).detach().numpy()
    np.testing.assert_allclose(fitted, expected, rtol=1e-9)


def test_softmax_regression_agrees_with_scikit_learn():
    rows, module = digits(300), nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    modules.fit(module, "cross_entropy", rows, FitSettings(weight_decay=0.01, tolerance=1e-9))
    # scikit-learn's penalty is on the sum of losses: 1 / (2 C)
    reference = LogisticRegression(C=1 / (0.01 * 300), fit_intercept=False, tol=1e-12)
    reference.fit(rows.x.flatten(1).numpy(), rows.y.numpy())
    np.testing.assert_allclose(module[1].weight.detach().numpy(), reference.coef_, atol=1e-5)


def test_a_float32_module_is_fitted_in_float64():
    rows, module = digits(100), small().float()
    report = modules.fit(module, "cross_entropy", rows, FitSettings(weight_decay=1e-2))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert report.gradient_norm <= 1e-6
    assert penalised_gradient_norm(module.double(), rows, 1e-2) < 1e-5


def test_too_few_steps_are_reported_as_not_converged():
    messages: list[str] = []
    settings = FitSettings(weight_decay=1e-3, max_steps=2)
    report = modules.fit(build(), "cross_entropy", digits(100), settings, report=messages.append)
    assert not report.converged
    assert report.steps <= 4
    assert "Newton steps follow" in messages[0]
    assert "NOT converged" in messages[-1]


@pytest.mark.parametrize(
    ("optimizer", "batch_size"),
    [
        ("adam", None),
        ("sgd", 7),
        pytest.param("adam", 7, marks=pytest.mark.campaign),
        pytest.param("sgd", None, marks=pytest.mark.campaign),
    ],
)
def test_stochastic_fits_approach_the_closed_form_and_repeat(optimizer, batch_size):
    rows, start = regression(), nn.Linear(5, 1).double()
    settings = FitSettings(
        optimizer=optimizer,
        max_steps=1000,
        learning_rate=0.02,
        batch_size=batch_size,
        weight_decay=0.1,
        seed=3,
    )
    report = modules.fit(copy.deepcopy(start), "mse", rows, settings)
    few = settings.model_copy(update={"max_steps": 50})
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    for module in (first, second):
        modules.fit(module, "mse", rows, few)
    assert modules.save_checkpoint(first) == modules.save_checkpoint(second)
    best = modules.fit(start, "mse", rows, FitSettings(weight_decay=0.1))
    assert report.steps == 1000
    assert report.loss == pytest.approx(best.loss, rel=1e-4 if batch_size is None else 0.1)


def test_the_seed_decides_the_order_of_batches():
    rows, start = regression(), nn.Linear(5, 1).double()
    fits = []
    for seed in (0, 1):
        fits.append(copy.deepcopy(start))
        settings = FitSettings(optimizer="sgd", max_steps=5, batch_size=7, seed=seed)
        modules.fit(fits[-1], "mse", rows, settings)
    assert not torch.equal(fits[0].weight, fits[1].weight)


def test_every_row_is_drawn_once_before_any_is_drawn_again():
    seen: list[float] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.extend(target.tolist())
        return (output[:, 0] - target).square()

    rows = Rows(torch.randn(10, 2), torch.arange(10.0))
    settings = FitSettings(optimizer="sgd", max_steps=8, batch_size=3, learning_rate=1e-3)
    modules.fit(nn.Linear(2, 1), loss, rows, settings)
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_frozen_parameters_stay():
    rows, module = digits(100), build()
    module[1].requires_grad_(False)
    before = module[1].weight.clone()
    modules.fit(module, "cross_entropy", rows, FitSettings(weight_decay=1e-2))
    assert torch.equal(module[1].weight, before)


def test_dropout_is_off_while_fitting():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).double()
    settings = FitSettings(weight_decay=1e-2)
    assert modules.fit(module, "cross_entropy", digits(100), settings).converged


def test_many_batches_of_rows_are_one_objective(monkeypatch):
    rows, start = digits(100), small()
    together, apart = copy.deepcopy(start), copy.deepcopy(start)
    settings = FitSettings(weight_decay=1e-2, max_steps=30)
    whole = modules.fit(together, "cross_entropy", rows, settings)
    monkeypatch.setattr("influence_dag.objective.fitting.ROWS_AT_ONCE", 33)
    ragged = modules.fit(apart, "cross_entropy", rows, settings)
    assert ragged.loss == pytest.approx(whole.loss, rel=1e-9)


def test_a_diverging_fit_is_an_error():
    settings = FitSettings(optimizer="sgd", learning_rate=1e6, max_steps=200)
    with pytest.raises(ModelError, match=r"left the finite numbers.*lower learning_rate"):
        modules.fit(nn.Linear(5, 1).double(), "mse", regression(), settings)


def test_global_random_numbers_are_left_alone():
    before = torch.random.get_rng_state()
    module = build(seed=5)
    settings = FitSettings(optimizer="adam", max_steps=3, batch_size=7)
    modules.fit(module, "cross_entropy", digits(50), settings)
    assert torch.equal(torch.random.get_rng_state(), before)


# Building


@pytest.mark.parametrize(
    ("study", "shape", "out"),
    [("digits", (8, 8), 10), ("digits_cnn", (8, 8), 10), ("diabetes", (10,), 1)],
)
def test_the_bundled_studies_build(study, shape, out):
    module = build(f"assets.{study}.model:build")
    assert module(torch.zeros(3, *shape, dtype=torch.float64)).shape == (3, out)


def test_the_seed_decides_the_first_weights():
    assert modules.save_checkpoint(build(seed=1)) == modules.save_checkpoint(build(seed=1))
    assert modules.save_checkpoint(build(seed=1)) != modules.save_checkpoint(build(seed=2))


def test_build_has_to_return_a_module(tmp_path):
    code(tmp_path, "def build(): return 3")
    with pytest.raises(ModelError, match=r"model\.build: user_model:build returned an int"):
        build("user_model:build", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("user_modle:build", "no module 'user_modle'; did you mean 'user_model'.; looked in"),
        ("user_model:bild", r"user_model\.py has no 'bild'; did you mean build"),
        ("user_model:size", "is an int, expected a callable"),
        ("user_model.deeper:build", "no module 'user_model.deeper'"),
    ],
)
def test_a_callable_that_does_not_import_names_the_field(tmp_path, name, words):
    code(tmp_path, "size = 3\ndef build(): pass")
    with pytest.raises(StudyError, match=rf"model\.build: {name}.*{words}"):
        modules.import_callable(name, tmp_path, "model.build")


def test_a_missing_dependency_of_the_user_code_is_named(tmp_path):
    code(tmp_path, "import no_such_library")
    with pytest.raises(StudyError, match="user_model needs 'no_such_library'"):
        modules.import_callable("user_model:build", tmp_path, "model.build")


def test_importing_leaves_the_path_as_it_was(tmp_path):
    before = list(sys.path)
    with pytest.raises(StudyError):
        modules.import_callable("nowhere:build", tmp_path, "model.build")
    assert sys.path == before


def test_each_project_has_its_own_assets(tmp_path):
    ours = modules.import_callable("assets.digits.model:build", ROOT, "model.build")
    (tmp_path / "assets/digits").mkdir(parents=True)
    for folder in ("assets", "assets/digits"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "assets/digits/model.py").write_text("def build(): return 'theirs'")
    theirs = modules.import_callable("assets.digits.model:build", tmp_path, "model.build")
    again = modules.import_callable("assets.digits.model:build", ROOT, "model.build")
    assert theirs() == "theirs"
    assert isinstance(again(), nn.Sequential)
    assert ours.__code__ == again.__code__


# Checkpoints


def test_a_checkpoint_comes_back(tmp_path):
    module, other = build(seed=1), build(seed=2)
    (tmp_path / "state.safetensors").write_bytes(modules.save_checkpoint(module))
    modules.load_checkpoint(other, tmp_path / "state.safetensors")
    assert modules.save_checkpoint(other) == modules.save_checkpoint(module)


def test_a_checkpoint_takes_the_module_precision_and_holds_buffers(tmp_path):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    module(torch.randn(8, 3).double())
    (tmp_path / "state.safetensors").write_bytes(modules.save_checkpoint(module))
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    modules.load_checkpoint(other, tmp_path / "state.safetensors")
    assert other[0].weight.dtype == torch.float32
    torch.testing.assert_close(other[1].running_mean, module[1].running_mean.float())


def test_tied_and_transposed_weights_can_be_saved():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[0].bias.data = torch.randn(3, 3).t()[0]
    state = load(modules.save_checkpoint(module))
    assert torch.equal(state["0.weight"], state["1.weight"])
    assert torch.equal(state["0.bias"], module[0].bias)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("3.bias"), r"3\.bias is missing \(wanted \(10,\)\)"),
        (lambda state: state.update(extra=torch.ones(2)), r"extra is unexpected \(2,\)"),
        (
            lambda state: state.update({"1.weight": torch.ones(16, 64)}),
            r"1\.weight has shape \(16, 64\), the module's is \(32, 64\)",
        ),
        (lambda state: state["1.bias"].fill_(np.nan), r"1\.bias is not finite"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_a_checkpoint_that_does_not_fit_says_where(tmp_path, change, words):
    module, path = build(), tmp_path / "state.safetensors"
    state = {name: value.clone() for name, value in module.state_dict().items()}
    change(state)
    save_file(state, path)
    before = modules.save_checkpoint(module)
    with pytest.raises(ModelError, match=rf"state\.safetensors does not fit Sequential: {words}"):
        modules.load_checkpoint(module, path)
    assert modules.save_checkpoint(module) == before


@pytest.mark.parametrize("content", [None, b"not a checkpoint"], ids=["absent", "damaged"])
def test_an_unreadable_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "state.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"state\.safetensors: not a readable safetensors file"):
        modules.load_checkpoint(build(), path)


def test_the_state_fingerprint_sees_every_bit():
    module = build()
    before = modules.save_checkpoint(module)
    with torch.no_grad():
        module[1].bias[0] = torch.nextafter(module[1].bias[0], torch.tensor(9.0).double())
    assert modules.save_checkpoint(module) != before
    assert modules.save_checkpoint(module.float()) != before
