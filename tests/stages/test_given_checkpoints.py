"""Networks that another loop trained: how near to a minimum they are, and what is assumed."""

import importlib
import logging

import pytest
import reference
import torch
from tiny_project import Project, make_rows
from torch import nn
from torch.nn import functional as F

from influence_dag.components.changes import made_from
from influence_dag.errors import InfluenceDagError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.query.report import findings_of
from influence_dag.query.report.sections import Sections
from influence_dag.stages import checks, dataset, model
from influence_dag.stages.minimum import judged
from influence_dag.stages.updates import current_update
from influence_dag.study.model import ModelSettings
from influence_dag.validation.datamodels import fit_subsets

EARLY, METHODS = 20, {"cg": {"curvature": "gauss_newton", "rtol": 1e-10}, "ekfac": {}}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def trained(project, steps=EARLY):
    """An ordinary loop, stopped early."""
    module, (x, y) = network(), project.tensors("train")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A finished study of the network that the loop left."""
    root = tmp_path_factory.mktemp("served")
    project = Project(root, perturbation=None)
    project.settings["methods"] = METHODS
    project.module = trained(project)
    torch.save({"epoch": 1, "model_state_dict": project.module.state_dict()}, root / "net.pt")
    project.write_settings(model={"fit": None, "checkpoint": "net.pt"})
    project.refresh()
    return project


@pytest.fixture
def project(served, tmp_path):
    return served.copy(tmp_path)


def attrs(project, name):
    return project.results.store.version(name).attrs


@pytest.mark.usefixtures("_logging")
def test_a_network_trained_by_an_ordinary_loop_is_served_with_a_warning(project, capsys):
    project.materialize()
    said = capsys.readouterr().err
    assert "warning: tiny/model: at_a_minimum: ‖∇" in said
    assert "fit: {from: checkpoint}" in said
    assert attrs(project, "cg/influences")["assumes"].startswith("θ is no minimum")
    assert attrs(project, "cg/influences")["damping_reason"].startswith("trace / p")
    assert "trained_on_rows" not in attrs(project, "model")["info"]
    bench = project.bench()
    about = made_from(bench, current_update(bench, "cg/influences", kept=0, info=None), "cg")
    assert about["model"] == "version 1, a checkpoint as it is"


def test_the_gradient_is_held_against_those_that_it_is_the_mean_of(project):
    gradients = reference.per_sample_gradients(
        project.module, F.cross_entropy, *project.tensors("train")
    )
    info = attrs(project, "model")["info"]
    expected = gradients.mean(0).norm() / gradients.norm(dim=1).mean()
    assert info["relative_gradient"] == pytest.approx(expected.item(), rel=1e-9)
    assert info["relative_gradient"] > 0.05
    outcome = checks.gradient_norm(project.bench())
    assert not outcome.passed
    assert outcome.tolerated
    assert outcome.metadata["relative_gradient"] == info["relative_gradient"]


@pytest.fixture(params=[logging.NOTSET, logging.CRITICAL], ids=["logging", "logging disabled"])
def _logging(request):
    logging.disable(request.param)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_logging")
def test_a_minimum_can_be_required(project):
    project.write_settings(model={"minimum": "require"})
    with pytest.raises(InfluenceDagError, match=r"tiny/model: at_a_minimum: .*of the mean norm"):
        project.materialize()


def test_that_there_is_none_can_be_known(project):
    project.write_settings(model={"minimum": "ignore"})
    project.refresh()
    assert checks.gradient_norm(project.bench()).passed


@pytest.mark.parametrize(("minimum", "tolerated"), [(None, False), ("warn", True)])
def test_a_fit_of_our_own_has_a_tolerance_to_reach(project, minimum, tolerated):
    fit = {"max_steps": 1, "weight_decay": 0.1}
    project.write_settings(model={"fit": fit, "checkpoint": None, "minimum": minimum})
    project.refresh()
    outcome = checks.gradient_norm(project.bench())
    assert not outcome.passed
    assert outcome.tolerated is tolerated
    assert "missed its tolerance 1e-06" in outcome.message


def test_training_on_ends_at_a_minimum_and_tells_what_it_changed(project):
    fit = {"from": "checkpoint", "weight_decay": 0.05}
    project.write_settings(model={"fit": fit})
    project.refresh()
    info = attrs(project, "model")["info"]
    assert checks.gradient_norm(project.bench()).passed
    said = attrs(project, "cg/influences")["assumes"]
    assert said.startswith("θ is a minimum of the (penalised) mean loss of the training rows that")
    theta = torch.from_numpy(project.results.store.version("model").read("parameters"))
    before = torch.nn.utils.parameters_to_vector(project.module.parameters()).detach()
    assert info["theta_moved"] == pytest.approx((theta - before).norm().item(), rel=1e-9)
    x, y = project.tensors("test")
    after = network()
    torch.nn.utils.vector_to_parameters(theta, after.parameters())
    shares = {"theta_moved_relative": (theta - before).norm() / before.norm()}
    f = project.module(x).detach()
    shares["outputs_moved_relative"] = (after(x) - f).norm() / f.norm()
    for name, share in shares.items():
        assert info[name] == pytest.approx(share.item(), rel=1e-9)
    changed = project.module(x).argmax(1) != after(x).argmax(1)
    assert info["predicted_classes_changed"] == pytest.approx(changed.double().mean().item())
    assert info["test_mean_before"] == pytest.approx(F.cross_entropy(project.module(x), y).item())
    assert info["test_mean_after"] == pytest.approx(F.cross_entropy(after(x), y).item())
    project.edit("test", 3, height=2.5)
    assert project.refresh()["model"].info["measured"].startswith("of the test rows")
    told = Sections(project.results, findings_of(project.results)).theta
    assert told["measured"] == "of the test rows that there were when θ was stored"
    assert told["test mean after"] == f"{info['test_mean_after']:.4g}"


def test_training_on_follows_the_rows_and_a_checkpoint_as_it_is_does_not(project):
    before, earlier = project.data_versions()["model"], "of the training rows that there were"
    assert earlier not in checks.gradient_norm(project.bench()).message
    project.edit("train", 3, height=2.5)
    project.refresh()
    assert project.data_versions()["model"] == before
    assert earlier in checks.gradient_norm(project.bench()).message, "it is not measured anew"
    said = {each.name: each.says for each in findings_of(project.results).found}
    assert earlier in said["minimum"]
    project.write_settings(model={"fit": {"from": "checkpoint", "weight_decay": 0.05}})
    project.refresh()
    fitted = project.data_versions()["model"]
    project.edit("train", 3, height=1.5)
    project.refresh()
    assert project.data_versions()["model"] != fitted


def test_refits_start_from_the_checkpoint_and_say_what_they_are_worth(project):
    """Near θ, with a penalty that keeps them there, refits do what influences predict."""
    project.write_settings(
        damping=0.5,  # above twice the size of the smallest eigenvalue
        methods={"direct": {"curvature": "hessian"}, "cg": None, "ekfac": None},
        model={"minimum": "ignore"},
        validation={"leave_one_out": {"rows": 8}, "datamodels": {"count": 12}},
    )
    project.refresh()
    one = attrs(project, "validation/leave_one_out")
    assert one["info"]["pearson"] > 0.95
    assert one["info"]["base_shift"] < 1e-6  # with every row nothing moves, minimum or not
    assert "less its slope" in one["refits_minimise"]
    assert "seen every row" in one["refits_are_worth"]
    halves = attrs(project, "validation/datamodels")
    assert halves["refits_start"] == "at the given checkpoint"
    scores = halves["info"]["scores"]
    assert scores["direct"]["lds"] > scores["gradient_dot"]["lds"] - 0.05


def test_refits_start_where_a_fit_that_trains_on_does(project):
    fit = {"from": "checkpoint", "weight_decay": 0.05}
    asked = {"datamodels": {"count": 5, "dampings": [0.05]}, "label_errors": {"folds": 0}}
    project.write_settings(model={"fit": fit}, methods={"ekfac": None}, validation=asked)
    project.refresh()
    train, test = (Rows(*project.tensors(split)) for split in ("train", "test"))
    stored = project.results.store.version("validation/datamodels")
    objective = Objective(project.module, "cross_entropy")
    membership = torch.from_numpy(stored.read("membership"))
    again = fit_subsets(objective, train, test, membership, weight_decay=0.05, tolerance=1e-4)
    torch.testing.assert_close(torch.from_numpy(stored.read("found")), torch.tensor(again.values))
    for kind in asked:
        assert attrs(project, f"validation/{kind}")["refits_start"].startswith("at the given check")


def test_a_proximal_refit_is_the_plain_one_at_a_minimum():
    from influence_dag.validation.refits import refit, refit_without

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    rows = Rows(x, torch.arange(30) % 3)
    objective = Objective(network(), "cross_entropy")
    full = refit(objective, rows, rows.shares[None], weight_decay=0.1, max_steps=500)
    at_minimum = full.member(0)
    plain, proximal = (
        refit_without(at_minimum, rows, [3, 11], weight_decay=0.1, proximal=flag)
        for flag in (False, True)
    )
    torch.testing.assert_close(proximal.params, plain.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["cg", "ekfac"])
@pytest.mark.parametrize(
    ("damping", "words"),
    [(None, None), (1e-9, "damping: auto takes the mean"), (1e6, "dot products of gradients")],
)
def test_a_damping_far_from_the_spectrum_is_told(project, method, damping, words):
    project.settings["methods"] = {method: METHODS[method]}
    project.write_settings(damping=damping)
    project.refresh()
    outcome = checks.damping_near_spectrum(project.bench(), method)
    assert outcome.passed is (words is None)
    assert outcome.tolerated
    assert words is None or words in outcome.message


COUNTING = """
from torch import nn

seen = []


class Network(nn.Sequential):
    def forward(self, x):
        seen.append(len(x))
        return super().forward(x)


def build():
    return Network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
"""


def test_activations_of_few_rows_are_in_memory_at_a_time(project):
    """Of a network's outputs and gradients, whatever the number of rows."""
    project.write("train", make_rows("train", 3_000))
    project.write_model(COUNTING)
    project.write_settings(compute={"batch_size": 500}, data={"classes": ["a", "b", "c"]})
    bench = project.bench()
    dataset.refresh(bench)
    model.refresh(bench)
    assert max(importlib.import_module("tiny_model").seen) <= 1_024


@pytest.mark.parametrize(
    ("minimum", "cure"), [("require", "or say minimum: warn"), ("warn", "(max_steps)")]
)
def test_a_cure_that_was_taken_is_not_told_again(minimum, cure):
    settings = ModelSettings.model_validate({"build": "m:build", "fit": {}, "minimum": minimum})
    assert judged(settings, {"gradient_norm": 1.0, "relative_gradient": 0.5}).message.endswith(cure)
