"""λ that the curvature decides, none at all, and negative curvature by its size, in studies."""

import numpy as np
import pytest
import reference
import torch
from tiny_project import MODEL, Project
from torch import nn
from torch.nn import functional as F

from influence_dag.curvature import GaussNewton
from influence_dag.objective import Objective, Rows
from influence_dag.query.report import findings_of
from influence_dag.query.text import describe
from influence_dag.solvers import EKFAC, Blockwise, dampings, parameter_blocks
from influence_dag.stages import checks
from influence_dag.stages.automatic import of_factors

HESSIAN_METHODS = ("direct", "cg")
LINEAR = """\
from torch import nn


def build():
    return nn.Linear(3, 3)
"""


def module_of(project):
    from influence_dag.objective import modules
    from influence_dag.study.loading import load_study

    study = load_study(project.folder)
    module = modules.build_module(study.settings.model, study.root, torch.float64)
    theta = torch.from_numpy(project.results.store.version("model").read("parameters")).double()
    torch.nn.utils.vector_to_parameters(theta, module.parameters())
    return module


def problem(project):
    """H, gradients of test and training rows, by autograd at the stored parameters."""
    module = module_of(project)
    train, test = project.tensors("train"), project.tensors("test")
    return (
        reference.hessian(module, F.cross_entropy, *train),
        reference.per_sample_gradients(module, F.cross_entropy, *test),
        reference.per_sample_gradients(module, F.cross_entropy, *train),
    )


def stored(project, method, name="influences", of="influences"):
    return np.asarray(project.results.store.version(f"{method}/{of}").read(name))


def assert_close(actual, expected, tolerance=1e-6):
    expected = np.asarray(expected)
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def project_of(root, *, fit=None, model=MODEL, **changes):
    project = Project(root, model=model, **({"perturbation": None} | changes))
    if fit:
        project.write_settings(model={"fit": fit})
    return project


EARLY = {"optimizer": "adam", "max_steps": 10, "learning_rate": 0.05}


# damping: auto -----------------------------------------------------------------------------------


def test_an_automatic_damping_is_the_mean_size_of_the_eigenvalues(tmp_path):
    project = project_of(
        tmp_path,
        damping="auto",
        methods={"direct": {}, "cg": {"rtol": 1e-10}, "identity": {}, "kfac": {}},
    )
    project.refresh()
    H, rhs, gradients = problem(project)
    damping = torch.linalg.eigvalsh(H).abs().mean().item()
    expected = reference.damped_solve(H, rhs, damping) @ gradients.T
    for method in HESSIAN_METHODS:
        attrs = project.results.store.version(f"{method}/influences").attrs
        assert attrs["damping"] == pytest.approx(damping, rel=1e-6)
        assert attrs["damping_reason"] == "mean |eigenvalue| of the curvature"
        assert_close(stored(project, method), expected)
    assert_close(stored(project, "identity"), rhs @ gradients.T)
    kfac = project.results.store.version("kfac/influences").attrs
    trace = sum(
        stored(project, "kfac", name, "curvature").sum()
        for name in project.results.store.version("kfac/curvature").variables
        if name.endswith("eigenvalues")
    )
    assert kfac["damping"] == pytest.approx(trace / len(H), rel=1e-6)


def test_an_automatic_damping_of_a_gauss_newton_matrix_is_its_trace_over_p(tmp_path):
    project = project_of(
        tmp_path,
        damping="auto",
        model=LINEAR,
        methods={"direct": {"curvature": "gauss_newton"}, "cg": {"curvature": "gauss_newton"}},
    )
    project.refresh()
    H, *_ = problem(project)  # of a softmax regression, the same matrix
    for method in HESSIAN_METHODS:
        attrs = project.results.store.version(f"{method}/influences").attrs
        assert attrs["damping"] == pytest.approx(H.diagonal().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    "blocks", ["full", "layer", [["0.weight", "2.bias"], ["0.bias", "2.weight"]]], ids=str
)
def test_kronecker_factors_of_blocks_have_the_automatic_damping_of_all(blocks):
    """Of blocks of any sizes the mean over parameters: the trace of what they stand for over p."""
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    objective = Objective(network, "cross_entropy")
    rows = Rows(torch.randn(7, 3).double(), torch.arange(7) % 2)
    curvature, method = GaussNewton(objective, rows), EKFAC()
    if blocks != "full":
        parts = parameter_blocks(objective.slices, blocks)
        method = Blockwise(method=method, blocks=parts, dampings={})
    expected = curvature.dense().trace().item() / objective.size
    assert of_factors(method.factorize(curvature)).value == pytest.approx(expected)


def test_without_a_stored_matrix_an_automatic_damping_is_estimated_and_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(dampings, "_FEW", 0)
    project = project_of(tmp_path, damping="auto", methods={"direct": None, "cg": {}})
    project.refresh()
    H, rhs, gradients = problem(project)
    attrs = project.results.store.version("cg/influences").attrs
    assert "estimated from" in attrs["damping_reason"]
    mean = torch.linalg.eigvalsh(H).abs().mean().item()
    assert attrs["damping"] == pytest.approx(mean, rel=0.3)
    expected = reference.damped_solve(H, rhs, attrs["damping"]) @ gradients.T
    assert_close(stored(project, "cg"), expected, 1e-4)


def test_a_given_damping_has_the_mean_eigenvalue_beside_it_where_few_products_tell(tmp_path):
    """Of a matrix that is stored, of a semidefinite one from products; not of H from products."""
    matrix = {"curvature": "gauss_newton"}
    chosen = {"direct": matrix, "cg": matrix, "arnoldi": {"rank": 5}}
    project = project_of(tmp_path, damping=0.5, methods=chosen)
    project.refresh()
    store = project.results.store
    stored_matrix = store.version("gauss_newton").read("gauss_newton")
    mean = np.trace(stored_matrix) / len(stored_matrix)
    told = {name: store.version(f"{name}/curvature").attrs["info"] for name in chosen}
    assert told["direct"]["mean_eigenvalue"] == pytest.approx(mean, rel=1e-6)
    assert told["cg"]["mean_eigenvalue"] == pytest.approx(mean, rel=0.3)
    assert "mean_eigenvalue" not in told["arnoldi"]


def test_a_matrix_that_is_stored_since_settles_an_automatic_damping(tmp_path, monkeypatch):
    """The mean of its eigenvalues is known then, and methods solve one system."""
    monkeypatch.setattr(dampings, "_FEW", 0)
    project = project_of(tmp_path, damping="auto", methods={"direct": None, "cg": {}})
    project.refresh()

    def taken(method):
        return project.results.store.version(f"{method}/curvature").attrs["automatic_damping"]

    estimated = taken("cg")
    project.write_settings(methods={"direct": {"on_indefinite": "lu"}})
    project.refresh()
    assert taken("cg") == taken("direct") != estimated
    project.write_settings(methods={"direct": None})
    project.refresh()
    assert taken("cg") == estimated


def test_an_automatic_damping_follows_the_data_and_nothing_else_is_computed_again(tmp_path):
    project = project_of(tmp_path, damping="auto")
    project.refresh()
    before = project.results.store.version("direct/influences").attrs["damping"]
    assert all(update.is_current for update in project.refresh().values())
    project.edit("train", 0, height=9.0)
    project.refresh()
    H, *_ = problem(project)
    after = project.results.store.version("direct/influences").attrs["damping"]
    assert after != before
    assert after == pytest.approx(torch.linalg.eigvalsh(H).abs().mean().item(), rel=1e-3)


def test_a_damping_by_a_matrix_of_other_rows_is_settled_anew_when_that_has_followed(tmp_path):
    """A pinned matrix says the λ of a method that comes later, until it is pinned no more."""
    matrix = {"curvature": "gauss_newton"}
    project = project_of(tmp_path, damping="auto", methods={"direct": matrix, "cg": None})
    project.write_settings(curvature={"refresh": "pinned"}, model={"refit": "pinned"})
    project.refresh()
    for row in range(12):
        project.edit("train", row, height=5.0 + row)
    project.write("train", project.rows["train"][:-3])
    project.write_settings(methods={"cg": matrix})
    project.refresh()

    def said(name):
        attrs = {m: project.results.store.version(f"{m}/curvature").attrs for m in ("direct", "cg")}
        return attrs["direct"][name], attrs["cg"][name]

    assert said("n_train") == (40, 37)
    project.write_settings(curvature={"refresh": "on_change"})
    project.refresh()
    assert said("n_train") == (37, 37)
    assert len({*said("automatic_damping")}) == 1
    assert all(update.is_current for update in project.refresh().values())


def test_a_factorisation_says_the_rows_of_its_matrix(tmp_path):
    """Of a pinned one it is factorised anew, for another λ, beside other rows."""
    project = project_of(tmp_path, damping=1.0, curvature={"refresh": "pinned"})
    project.write_settings(model={"refit": "pinned"})
    project.refresh()

    def said():
        attrs = project.results.store.version("direct/curvature").attrs
        return [attrs[name] for name in ("n_train", "weight_sum", "train_rows")]

    before = said()
    project.write("train", project.rows["train"][:-3])
    project.write_settings(damping=2.0)
    assert project.refresh()["direct/curvature"].blocks_computed
    assert said() == before


def test_a_study_with_an_automatic_damping_is_materialised_with_its_checks(tmp_path):
    project = project_of(tmp_path, damping="auto", methods={"direct": {}, "cg": {}})
    assert project.materialize()["direct"].influences.shape[0] > 0


# No damping --------------------------------------------------------------------------------------


def test_without_damping_a_singular_curvature_has_the_answer_of_least_norm(tmp_path):
    project = project_of(
        tmp_path,
        damping=0.0,
        model=LINEAR,
        fit={"weight_decay": 1e-3},
        methods={"direct": {}, "cg": {"rtol": 1e-10}},
    )
    project.materialize()  # with its checks
    said = {each.name: each for each in findings_of(project.results).found}
    assert abs(said["curvature"].number) < 1e-12
    assert said["curvature"].outcome == "good"
    H, rhs, gradients = problem(project)
    inverse = torch.linalg.pinv(H, hermitian=True, rtol=1e-12)
    for method in HESSIAN_METHODS:
        factors = stored(project, method, "influence_factors", "influence_factors")
        assert_close(factors, rhs @ inverse)
        assert_close(stored(project, method), rhs @ inverse @ gradients.T)
    project.edit("test", 0, height=0.3)  # solved by the stored factorisation
    updates = project.refresh()
    assert updates["direct/curvature"].is_current
    H, rhs, gradients = problem(project)
    assert_close(stored(project, "direct"), rhs @ inverse @ gradients.T)


# Negative curvature ------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.01, [0.01, 0.1], "auto"], ids=["one", "sweep", "auto"])
def test_negative_curvature_counts_by_its_size_when_asked_for(tmp_path, damping):
    project = project_of(
        tmp_path,
        damping=damping,
        methods={"direct": {"on_indefinite": "absolute"}, "cg": None},
        fit=EARLY,
    )
    project.refresh()
    H, rhs, gradients = problem(project)
    values, V = torch.linalg.eigh(H)
    assert values[0] < -1e-3
    known = [values.abs().mean()] if damping == "auto" else np.atleast_1d(damping)
    expected = [((rhs @ V) / (values.abs() + d)) @ V.T @ gradients.T for d in known]
    found = stored(project, "direct")
    assert_close(found, torch.stack(expected).reshape(found.shape))
    assert checks.residual_below(project.bench(), "direct").passed
    project.edit("test", 0, height=0.3)
    assert project.refresh()["direct/curvature"].is_current


def test_a_damping_that_leaves_little_of_negative_curvature_is_told(tmp_path):
    project = project_of(
        tmp_path,
        damping=0.5,
        methods={"cg": None},
        fit=EARLY,
    )
    project.refresh()
    smallest = project.results.store.version("hessian").attrs["info"]["smallest_eigenvalue"]
    assert smallest < 0
    for factor, passed, tolerated in ((0.9, False, False), (1.5, False, True), (2.1, True, False)):
        project.write_settings(damping=-factor * smallest)
        outcome = checks.positive_definite(project.bench(), "hessian")
        assert (outcome.passed, outcome.tolerated) == (passed, tolerated)


def test_several_dampings_and_one_are_compared_where_both_have_numbers(tmp_path):
    """Two test rows and two λ: pairing axes by their places would find numbers everywhere."""
    gauss_newton = {"curvature": "gauss_newton"}
    project = Project(tmp_path, damping=0.5, methods={"cg": None, "direct": gauss_newton})
    project.write("test", project.rows["test"][:2])
    project.refresh()
    project.edit("train", 3, height=2.5)
    project.write_settings(damping=[0.5, 0.2])
    project.refresh()
    _compare(project, before={}, after={"damping": 0.5})
    assert "Influences by direct at λ = 0.2: " in describe(project.results)
    picture = project.results.plot.scores("test-00", damping=0.5)
    assert picture.axes[0].get_title().startswith("Influence by direct at λ = 0.5 on test-00")
    project.edit("train", 3, height=-1.5)
    project.write_settings(damping=0.2)
    project.refresh()
    _compare(project, before={"damping": 0.2}, after={})
    project.write_settings(damping=0.3)
    project.refresh()
    project.write_settings(damping=[0.5, 0.2])
    project.refresh()
    assert project.results.diff("direct/influences", 3).largest_changes("influences")
    assert not project.results.diff("direct/influences", 4).largest_changes("influences")


def _compare(project, before, after):
    """The changes of the last refresh, looked up by their labels in both versions."""
    results, name = project.results, "direct/influences"
    *_, old, new = results.versions(name)
    changes = results.diff(name, old.number).largest_changes("influences", 100)
    assert len(changes) == 80
    arrays = [results.open(name, version=v.number).influences.load() for v in (old, new)]
    for change in changes[::7]:
        rows = {dim: change.labels[dim] for dim in ("test", "train")}
        assert change.labels == {**after, **rows}
        assert change.before == arrays[0].sel(**rows, **before).item()
        assert change.after == arrays[1].sel(**rows, **after).item()
