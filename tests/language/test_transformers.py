"""Models of `transformers` as they are, against plain float64 autograd; their tutorial.

In one file: the library takes 3 CPU s to import.
"""

from importlib.util import find_spec

import language_models as models
import pytest
import reference
import torch
from tiny_project import Project
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.data import DataLoader
from tutorials import assert_it_prints_what_it_says

import influence_dag as idag
from influence_dag.curvature import GaussNewton
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import gradient_layout, per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None,
    reason="needs transformers: pip install 'influence-dag[test]'",
)

# Above the negative curvature of models that were not trained.
DAMPINGS = {"classifier": 3.0, "tagger": 3.0, "language model": 30.0}
DATA = """\
import language_models

NAME = {name!r}


def train():
    return language_models.Sentences(NAME, 5)


def test():
    return language_models.Sentences(NAME, 3, first=5)


def build():
    return language_models.build(NAME).double()
"""


@pytest.fixture(scope="module", params=models.NAMES)
def case(request):
    name = request.param
    sets = models.Sentences(name, 5), models.Sentences(name, 3, first=5)
    loaders = [DataLoader(each, batch_size=3) for each in sets]
    rows = [Rows.from_loader(loader) for loader in loaders]
    module = models.build(name).double()
    with sdpa_kernel(SDPBackend.MATH):
        H = reference.hessian(module, models.loss(name), rows[0].x, rows[0].y)
        G = [reference.per_sample_gradients(module, models.loss(name), r.x, r.y) for r in rows]
    return name, module, loaders, rows, H, G


def expected_influences(case):
    name, *_, H, (train, test) = case
    return reference.damped_solve(H, test, DAMPINGS[name]) @ train.T


@pytest.mark.parametrize("method", ["direct", "cg"])
def test_influences_are_autograds(case, method):
    name, module, loaders, *_ = case
    wrapped = idag.TorchTwiceDifferentiable(module, models.loss_name(name))
    settings: dict = {"inversion_method": method, "hessian_regularization": DAMPINGS[name]}
    settings |= {"rtol": 1e-10} if method == "cg" else {}
    found = idag.compute_influences(wrapped, *loaders, **settings)
    assert_close(found, expected_influences(case), rtol=1e-6, atol=1e-9)
    assert module.config.use_cache  # as it was


def output_jacobians(module, rows):
    """(n, outputs, p): of each row's logits, one backward pass each."""
    parameters = reference.parameters(module)
    found = []
    for i in range(len(rows)):
        logits = module(**rows[i : i + 1].x).logits.flatten()
        each = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True)
                for v in logits]  # fmt: skip
        found.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in each]))
    return torch.stack(found)


def output_curvature(name, module, rows):
    """(n, outputs, outputs): of each row's loss, softmax by softmax."""
    found, losses = [], models.loss(name)
    for i in range(len(rows)):
        logits = module(**rows[i : i + 1].x).logits[0].detach()
        curvature = torch.autograd.functional.hessian(
            lambda f, i=i: losses({"logits": f[None]}, rows.y[i : i + 1]), logits
        )
        found.append(curvature.reshape(logits.numel(), -1))
    return torch.stack(found)


def positions_of(block):
    """Where the entries of a block's matrix, or of its vector, are in θ."""
    index = [torch.arange(*place) for place in block.places]
    if not hasattr(block, "layer"):
        return torch.cat(index)
    weight, *bias = index
    outputs = len(block.eigenvalues)
    weight = weight.view(-1, outputs).T if block.layer.transposed else weight.view(outputs, -1)
    return torch.cat([weight, *(part[:, None] for part in bias)], 1).flatten()


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_kronecker_factors_are_those_of_autograds_gauss_newton_matrix(case, method):
    name, module, loaders, (rows, _), _, (train, test) = case
    J, M = output_jacobians(module, rows), output_curvature(name, module, rows)
    G = torch.einsum("nip,nij,njq->pq", J, M, J) / len(rows)
    objective = Objective(module, models.loss_name(name))
    factorization = EKFAC().factorize(GaussNewton(objective, rows))
    inverse = torch.zeros_like(G)
    for block in factorization.blocks:
        index, values = positions_of(block), block.eigenvalues.flatten()
        Q = (
            torch.kron(block.gradient_eigenvectors, block.activation_eigenvectors)
            if hasattr(block, "layer")
            else block.eigenvectors
        )
        assert_close((Q.T @ G[index][:, index] @ Q).diagonal(), values, rtol=1e-9, atol=1e-12)
        inverse[torch.meshgrid(index, index, indexing="ij")] = Q / (values + DAMPINGS[name]) @ Q.T
    wrapped = idag.TorchTwiceDifferentiable(module, models.loss_name(name))
    found = idag.compute_influences(
        wrapped, *loaders, inversion_method=method, hessian_regularization=DAMPINGS[name]
    )
    scale = (test @ inverse @ train.T).abs().max()
    tolerance = 1e-9 if method == "ekfac" else 0.3  # K-FAC is an approximation of the same blocks
    assert_close(found / scale, test @ inverse @ train.T / scale, rtol=0, atol=tolerance)


def test_every_layer_is_captured(case):
    name, module, _, (rows, _), *_ = case
    blocks = gradient_layout(Objective(module, models.loss_name(name)), rows).blocks
    uncaptured = {block.name for block in blocks if getattr(block, "layer", block.name) is None}
    assert uncaptured == ({"transformer.wte.weight"} if name == "language model" else set())


def test_tied_weights_are_one_parameter_and_untied_ones_two():
    rows = Rows.from_loader(DataLoader(models.Sentences("language model", 5), batch_size=5))
    for tie in (True, False):
        module = models.build("language model", tie=tie).double()
        objective = Objective(module, "next_token")
        assert ("lm_head.weight" in objective.parameter_names) is not tie
        with sdpa_kernel(SDPBackend.MATH):
            expected = reference.per_sample_gradients(
                module, models.loss("language model"), rows.x, rows.y
            )
        assert_close(per_sample_gradients(objective, rows).dense(), expected)


def test_fused_attention_is_replaced_where_derivatives_are_taken(case):
    name, module, (train, test), *_ = case
    module.config._attn_implementation = "flash_attention_2"
    try:
        wrapped = idag.TorchTwiceDifferentiable(module, models.loss_name(name))
        found = idag.compute_influences(wrapped, train, test, hessian_regularization=DAMPINGS[name])
    finally:
        module.config._attn_implementation = "sdpa"
    assert_close(found, expected_influences(case), rtol=1e-6, atol=1e-9)


def test_the_tokens_themselves_as_labels_are_told_from_the_next_ones():
    loaders = [DataLoader(models.Sentences("language model", n)) for n in (5, 2)]
    wrapped = idag.TorchTwiceDifferentiable(models.build("language model"), "cross_entropy")
    with pytest.raises(ModelError, match=r"own input tokens.*loss='next_token'"):
        idag.compute_influences(wrapped, *loaders, hessian_regularization=1.0)


def test_next_token_is_the_models_own_loss():
    module, data = models.build("language model"), models.Sentences("language model", 4)
    for row in Rows.from_loader(DataLoader(data)).batches(1):
        expected = module(**row.x, labels=row.y).loss
        found = Objective(module, "next_token").losses(Objective(module, "mse").params, row)
        assert_close(found, expected[None])


@pytest.mark.parametrize("case", ["classifier", "language model"], indirect=True)
def test_a_study_of_a_model_and_sentences_from_code(case, tmp_path):
    name, module, *_ = case
    project = Project(
        tmp_path,
        model=DATA.format(name=name),
        data={"train": "tiny_model:train", "test": "tiny_model:test", "id": None, "target": None},
        methods={"direct": {}, "cg": {"rtol": 1e-10}, "ekfac": {}, "kfac": {}},
        damping=DAMPINGS[name],
        perturbation=None,
    )
    torch.save(module.state_dict(), tmp_path / "model.pt")
    project.write_settings(
        model={"fit": None, "checkpoint": "model.pt", "loss": models.loss_name(name)}
    )
    project.refresh()
    said = project.results.open("model").attrs["info"]
    assert "attention by plain products (sdpa has no second derivative)" in str(said)
    results, expected = project.results, expected_influences(case)
    for method in ("direct", "cg"):
        found = torch.from_numpy(results[method].influences.values)
        assert_close(found, expected, rtol=1e-5, atol=1e-8)
    wrapped = idag.TorchTwiceDifferentiable(module, models.loss_name(name))
    for method in ("ekfac", "kfac"):
        expected = idag.compute_influences(
            wrapped, *case[2], inversion_method=method, hessian_regularization=DAMPINGS[name]
        )
        found = torch.from_numpy(results[method].influences.values)
        assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_tutorial_prints_what_it_says(tmp_path, monkeypatch):
    assert_it_prints_what_it_says("transformers", tmp_path, monkeypatch)
