"""What arrays say of themselves is what they are: formulas, signs and symbols are evaluated."""

import re

import numpy as np
import pytest
import reference
import torch
from formulas import Meaning, dampings, evaluated, residual
from safetensors.torch import load_file
from tiny_answers import assert_close
from tiny_project import MODEL, Project
from torch import nn
from torch.nn import functional as F
from weighted import Weighted

from influence_dag.study.imported import import_callable

MEASURED = f"""{MODEL}

def margin(output, target):
    chosen = output.gather(1, target[:, None]).squeeze(1)
    return output.logsumexp(1) - 2 * chosen
"""
SIZES = {"0.weight": 12, "0.bias": 4, "2.weight": 12, "2.bias": 3}
MARGIN = {"model": {"measurement": "tiny_model:margin"}}
PINNED = {"model": {"refit": "pinned"}, "curvature": {"refresh": "pinned"}}
BLOCKS = {"blocks": "layer", "block_damping": {"2": 0.5}}
VARIANTS = {
    "plain": ("direct", {}, {}),
    "sweep": ("direct", {}, {"damping": [0.05, 0.5]}),
    "measurement": ("direct", {}, MARGIN),
    "Gauss–Newton": ("direct", {"curvature": "gauss_newton"}, {}),
    "blocks": ("direct", {"blocks": "layer"}, {}),
    "dampings of blocks": ("direct", BLOCKS, {}),
    "dampings of blocks and a sweep": ("direct", BLOCKS, {"damping": [0.05, 0.5]}),
    "absolute eigenvalues": ("direct", {"on_indefinite": "absolute"}, {}),
    "of blocks": ("direct", {"on_indefinite": "absolute", **BLOCKS}, MARGIN),
    "automatic damping": ("direct", {}, {"damping": "auto"}),
    "products": ("cg", {"rtol": 1e-11, "rank": 8}, {}),
    "products with Gauss–Newton": ("cg", {"rtol": 1e-11, "curvature": "gauss_newton"}, MARGIN),
    "a series": (
        "lissa",
        {"rtol": 1e-10, "maxiter": 30_000, "dampen": 0.01, "scale": 1.5},
        {"damping": 0.5},  # for a tenth of the steps
    ),
    "leading eigenpairs": ("arnoldi", {"rank": 7, "tol": 1e-10}, {}),
    "and the rest as damping": ("arnoldi", {"rank": 7, "complement": "damping"}, MARGIN),
    "a sketch": ("nystroem", {"rank": 31, "curvature": "gauss_newton"}, {}),
    "Kronecker factors": ("ekfac", {}, {}),
    "uncorrected ones": ("kfac", {"curvature": "hessian"}, MARGIN),
    "gradients alone": ("identity", {}, {}),
    "gradients of a measurement": ("identity", {}, MARGIN | {"damping": [0.05, 0.5]}),
}
LOOSE = {"a series": 1e-6, "and the rest as damping": 1e-5, "a sketch": 1e-6}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("worded"), model=MEASURED, methods={"cg": None})
    project.refresh()
    return project


@pytest.fixture(params=list(VARIANTS), scope="module")
def variant(request, fitted, tmp_path_factory):
    """A study of one method, computed: the project, the method, how exact it is."""
    method, settings, others = VARIANTS[request.param]
    project = fitted.copy(tmp_path_factory.mktemp("variant"))
    only(project, {method: settings})
    project.write_settings(summary={"self_influence": True}, **others)
    project.refresh()
    return project, method, LOOSE.get(request.param, 1e-7)


def only(project, methods):
    """Those methods and no others, with perturbation influences."""
    project.settings = project.settings | {
        "methods": methods,
        "perturbation": {"methods": list(methods)},
    }
    project.write_settings()


def module_of(project):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    module.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    return module


def functions(project):
    margin = "tiny_model:margin"
    own = import_callable(margin, project.root, "model.measurement")
    return {"cross_entropy": F.cross_entropy, margin: own}


def meaning_of(project, array) -> Meaning:
    rows = project.tensors("train"), project.tensors("test")
    return Meaning(array.attrs, module_of(project), *rows, functions(project), SIZES)


def by_damping(array, dataset):
    """The array at each λ that its attributes name: one, those of blocks, or a sweep."""
    if "damping" not in array.dims:
        yield dampings(dataset.attrs), array
        return
    for k, value in enumerate(array.damping.values):
        said = dampings(dataset.attrs)
        if isinstance(said, dict):
            said = {block: v[k] if isinstance(v, list) else v for block, v in said.items()}
        else:
            assert said == "none" or said[k] == value
            said = said if said == "none" else said[k]
        yield said, array.isel(damping=k)


def stored(variant, artifact, name=None):
    project, method, tolerance = variant
    dataset = project.results.open(f"{method}/{artifact}").load()
    array = dataset[name or artifact]
    for damping, part in by_damping(array, dataset):
        meaning = meaning_of(project, dataset).at(damping)
        yield part, meaning, array.attrs, tolerance, dataset


def test_influences_are_their_formula(variant):
    for array, meaning, words, tolerance, _ in stored(variant, "influences"):
        assert_close(array, evaluated(words["formula"], meaning), tolerance)


def test_factors_and_residuals_are_their_formulas(variant):
    for array, meaning, words, tolerance, dataset in stored(variant, "influence_factors"):
        assert_close(array, evaluated(words["formula"], meaning).T, tolerance)
        told = dataset.residual.attrs["long_name"]
        letter = "L" if dataset.attrs["measurement"] == "the loss" else "m"
        if told == "0: s = b is taken as it is, and no system is solved":
            assert dataset.attrs["method"] == "identity"
            assert not array.residual.values.any()
            continue
        wanted = residual(told, meaning, array.values, letter)
        seen = array.residual.values
        np.testing.assert_allclose(seen, wanted, rtol=1e-3, atol=1e-7)


def test_perturbation_influences_are_their_formula(variant):
    for array, meaning, words, tolerance, _ in stored(variant, "perturbation_influences"):
        inside = re.fullmatch(
            r"∂/∂x_train \( (.*) ∇L\(\(x_train, y_train\)\) \)", words["formula"]
        )[1]
        factors = torch.from_numpy(evaluated(inside, meaning).copy())
        mixed = reference.mixed_products(
            meaning.module, F.cross_entropy, factors, *meaning.train
        ).numpy()
        assert_close(array, mixed, tolerance)


def test_self_influences_and_lengths_are_their_formulas(variant):
    for array, meaning, words, tolerance, _ in stored(variant, "summary", "self_influence"):
        assert_close(array, np.diag(evaluated(words["formula"], meaning)), tolerance)
    for array, meaning, words, tolerance, _ in stored(
        variant, "summary", "parameter_influence_norm"
    ):
        assert_close(array, evaluated(words["formula"], meaning), tolerance)


def test_what_is_computed_when_sliced_is_its_formula(variant):
    project, method, tolerance = variant
    whole = project.results.open(f"{method}/influences").load()
    array = project.results.parameter_influences(method)
    for damping, part in by_damping(array, whole):
        meaning = meaning_of(project, whole).at(damping)
        assert_close(part, evaluated(array.attrs["formula"], meaning).T, tolerance)
    shares = project.results.block_influences(method)
    formula, rest = shares.attrs["formula"].split(", ")
    assert formula == whole.influences.attrs["formula"]
    assert rest == "the terms of one block of parameters"
    assert_close(shares.sum("block"), whole.influences.values)


def test_signs_say_what_leaving_a_row_out_does(variant):
    """The named quantity, evaluated at the moved parameters, moves as the sign says."""
    project, method, _ = variant
    dataset = project.results.open(f"{method}/influences").load()
    moves = project.results.parameter_influences(method).load()
    words, module = dataset.influences.attrs["sign"], module_of(project)
    step, sign = _step_of(words, moves.attrs["sign"], dataset.attrs["n_train"])
    quantity = "margin" if "the measurement m of the test row" in words else "loss"
    assert quantity == "margin" or "the test loss" in words
    lead = {"damping": -1} if "damping" in moves.dims else {}
    x, y = project.tensors("test")
    before = _values(quantity, project, module, x, y)
    for row in (0, 17):
        move = torch.from_numpy(moves.isel(train=row, **lead).values)
        moved = _moved(module, sign * step * move)
        seen = _values(quantity, project, moved, x, y) - before
        predicted = step * sign * dataset.influences.isel(train=row, **lead).values
        error = np.linalg.norm(seen - predicted) / np.linalg.norm(predicted)
        assert error < 0.05, (quantity, error)


def _step_of(words, of_parameters, n_train):
    """How far to move along a parameter influence: as leaving out moves, but a hundredth of it."""
    if "gradient step" in words:
        assert "by about −η I" in words
        assert "by −η of it" in of_parameters
        return 1e-3, -1
    assert "by about +I/n_train" in words
    assert "by about +1/n_train of it" in of_parameters
    return 0.01 / n_train, 1


def _values(quantity, project, module, x, y):
    output = module(x)
    if quantity == "margin":
        return functions(project)["tiny_model:margin"](output, y).detach().numpy()
    return F.cross_entropy(output, y, reduction="none").detach().numpy()


def _moved(module, move):
    moved = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    moved.load_state_dict(module.state_dict())
    theta = nn.utils.parameters_to_vector(moved.parameters())
    nn.utils.vector_to_parameters(theta.detach() + move, moved.parameters())
    return moved


def test_units_and_names_are_of_what_is_measured(variant):
    project, method, _ = variant
    measured = "measurement" in project.settings["model"]
    for artifact in ("influences", "perturbation_influences", "influence_factors"):
        about = project.results.open(f"{method}/{artifact}")[artifact].attrs
        said = " ".join(map(str, about.values()))
        assert ("measurement" in said) == measured
        assert not (measured and re.search(r"test loss|L\(z_test\)", said))
    unit = project.results.open(f"{method}/influences").influences.attrs["units"]
    wanted = "measurement" if measured else "loss"
    if method == "identity":
        wanted += " · loss / parameter²"
    assert unit == f"{wanted}; not divided by n_train"


@pytest.mark.parametrize("method", ["direct", "identity"])
def test_weights_of_rows_are_in_the_formulas(tmp_path, method):
    project = Weighted(
        tmp_path, model=MEASURED, data={"weight": "importance"}, methods={"cg": None}
    )
    only(project, {method: {}})
    project.refresh()
    dataset = project.results.open(f"{method}/influences").load()
    assert dataset.attrs["weight_sum"] == 30.0
    rows = project.tensors("train"), project.tensors("test")
    weights = np.array(project.weights["train"])
    meaning = Meaning(dataset.attrs, module_of(project), *rows, functions(project), SIZES, weights)
    words = dataset.influences.attrs
    assert_close(dataset.influences, evaluated(words["formula"], meaning), 1e-8)
    assert words["units"].endswith("not divided by weight_sum")
    assert "n_train" not in words["sign"]
    summary = project.results.open(f"{method}/summary").load()
    own = summary.self_influence
    assert "w_i ∇L(z_i)" in own.attrs["formula"]
    assert_close(own, np.diag(evaluated(own.attrs["formula"], meaning)), 1e-8)
    length = summary.parameter_influence_norm
    assert_close(length, evaluated(length.attrs["formula"], meaning), 1e-8)
    moves = project.results.parameter_influences(method)
    assert_close(moves, evaluated(moves.attrs["formula"], meaning).T, 1e-8)
    inside = re.fullmatch(
        r"∂/∂x_train \( (.*) w_train ∇L\(\(x_train, y_train\)\) \)",
        project.results.perturbation(method).attrs["formula"],
    )[1]
    factors = torch.from_numpy(evaluated(inside, meaning).copy())
    mixed = reference.mixed_products(meaning.module, F.cross_entropy, factors, *meaning.train)
    wanted = mixed.numpy() * weights[None, :, None]
    assert_close(project.results.perturbation(method), wanted, 1e-8)
    assert project.results.open("gradients").attrs["formula"].startswith("w_i ∇θ L(z_i, θ)")


def test_a_pinned_curvature_speaks_of_the_rows_that_it_saw(fitted, tmp_path):
    project = fitted.copy(tmp_path)
    project.write_settings(**PINNED)
    before = project.tensors("train")
    project.write("train", project.rows["train"][2:])
    project.refresh()
    dataset = project.results.open("direct/influences").load()
    assert dataset.attrs["n_train"] == 40
    meaning = meaning_of(project, dataset)
    meaning.train, now = before, meaning.train
    inverse = evaluated("(H + λI)⁻¹", meaning)
    meaning.train = now
    G, T = meaning.gradient("L", "z_train"), meaning.gradient("L", "z_test")
    assert_close(dataset.influences, T.T @ inverse @ G, 1e-8)


def test_the_derivative_in_a_module_speaks_of_its_output(fitted, tmp_path):
    project = fitted.copy(tmp_path)
    project.write_settings(perturbation={"wrt": "0"}, **MARGIN)
    project.refresh()
    about = project.results.perturbation("direct").attrs
    assert about["formula"] == ("∂/∂a_train ( ∇m(z_test)ᵀ (H + λI)⁻¹ ∇L(z_train; a_train) )")
    assert about["units"].startswith("measurement per unit of the output of module '0' (a)")
    array = project.results.perturbation("direct").load()
    meaning = meaning_of(project, project.results.open("direct/influences"))
    factors = evaluated("∇m(z_test)ᵀ (H + λI)⁻¹", meaning)
    assert_close(array, _in_output(meaning, torch.from_numpy(factors.copy())), 1e-8)


def _in_output(meaning, factors):
    """d/da of (factor · gradient in θ), a the first layer's output, by adding ε to it."""
    first, tanh, _ = meaning.module
    parameters = [p.detach().clone().requires_grad_() for p in meaning.module.parameters()]

    def value(epsilon, x, y):
        W1, b1, W2, b2 = parameters
        hidden = tanh(x @ W1.T + b1 + epsilon)
        return F.cross_entropy(hidden @ W2.T + b2, y)

    x, y = meaning.train
    out = np.empty((len(factors), len(x), first.out_features))
    for i in range(len(x)):
        epsilon = torch.zeros(1, first.out_features, dtype=x.dtype, requires_grad=True)
        loss = value(epsilon, x[i : i + 1], y[i : i + 1])
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradient])
        for j, s in enumerate(factors):
            (d,) = torch.autograd.grad(flat @ s, epsilon, retain_graph=True)
            out[j, i] = d[0].numpy()
    return out


def test_a_study_of_gradients_alone_is_materialised_shown_and_checked(fitted, tmp_path):
    project = fitted.copy(tmp_path)
    only(project, {"direct": {}, "identity": {}})
    results = project.materialize()
    module = module_of(project)
    tested, trained = (
        reference.per_sample_gradients(module, F.cross_entropy, *project.tensors(split)).numpy()
        for split in ("test", "train")
    )
    assert_close(results["identity"].influences, tested @ trained.T)
    assert list(results.open("report").pair.values) == ["direct vs identity"]
    from influence_dag.query.text import describe

    assert "identity/curvature" in describe(results)
    assert project.materialize()["identity"].attrs["damping"] == "none"


@pytest.mark.parametrize("method", ["direct", "identity"])
def test_the_graph_says_what_the_arrays_do(fitted, tmp_path, method):
    from influence_dag.stages.graph import artifacts

    project = fitted.copy(tmp_path)
    only(project, {method: {}})
    project.write_settings(**MARGIN)
    project.refresh()
    told = {node.name: node.description for node in artifacts(project.bench().study)}
    about = project.results.open(f"{method}/influences").influences.attrs
    assert about["formula"] in told[f"{method}/influences"]
    assert about["sign"] in told[f"{method}/influences"]


def test_the_graph_of_a_weighted_study_says_that_sums_are_weighted(fitted, tmp_path):
    from influence_dag.stages.graph import artifacts

    project = fitted.copy(tmp_path, artifacts=())
    project.write_settings(data={"weight": "importance"})
    told = {node.name: node.description for node in artifacts(project.bench().study)}
    assert not [name for name, about in told.items() if "n_train" in about]
    assert "(1/weight_sum) Σ_i w_i" in told["hessian"]
    assert "+I/weight_sum" in told["direct/influences"]
    assert told["gradients"].startswith("w_i ∇θ L")
