"""Validations as artifacts of a study."""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import StudyError
from influence_dag.stages import refits
from influence_dag.stages.graph import VALIDATIONS, artifacts
from influence_dag.study.validation import ValidationSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "validation.md"

LINEAR = """\
from torch import nn


def build():
    return nn.Linear(3, 3)


def trained(module, rows):
    pass
"""

CHOSEN = {
    "leave_one_out": {"rows": 6, "seed": 1},
    "datamodels": {"count": 8},
    "label_errors": {"share": 0.2},
}


@pytest.fixture(scope="module")
def validated(finished_project, tmp_path_factory):
    project = finished_project.copy(tmp_path_factory.mktemp("validated"))
    project.write_settings(validation=CHOSEN)
    project.updates = project.refresh()
    return project


def test_rows_left_out_are_predicted(validated):
    found = validated.results.open("validation/leave_one_out")
    assert found.sizes == {"test": 10, "left_out": 6}
    stored = validated.results["direct"].influences
    predicted = stored.sel(train=found.left_out.values).values / 40
    np.testing.assert_allclose(found.predicted, predicted, rtol=1e-12)
    assert np.corrcoef(found.predicted.values.ravel(), found.actual.values.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("of_these_rows", [True, False])
def test_the_factor_of_a_large_model_serves_for_the_rows_that_it_was_made_from(
    finished_project, tmp_path, monkeypatch, of_these_rows
):
    """A pinned one is of other rows, and its leverages are no rows' of today."""
    for module in (refits, sys.modules["influence_dag.validation.leave_one_out"]):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    project = finished_project.copy(tmp_path)
    if not of_these_rows:
        pinned = {"model": {"refit": "pinned"}, "curvature": {"refresh": "pinned"}}
        project.write_settings(**pinned)
        project.edit("train", 3, height=2.5)
    project.write_settings(validation={"leave_one_out": {"rows": 3}})
    project.refresh()
    found = project.results.open("validation/leave_one_out")
    assert ("corrected" in found) == of_these_rows


def test_the_factor_of_another_fit_does_not_serve(finished_project, tmp_path, monkeypatch):
    """Of a method that is not made with the others; its leverages were those of θ as it was."""
    for module in (refits, sys.modules["influence_dag.validation.leave_one_out"]):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    project = finished_project.copy(tmp_path)
    project.write_settings(
        model={"fit": {"tolerance": 1e-3}},
        validation={"leave_one_out": {"rows": 3, "method": "cg"}},
    )
    bench = project.bench()
    for node in artifacts(bench.study):
        if not node.name.startswith("direct/") and node.name != "report":
            node.refresh(bench)
    assert "corrected" not in project.results.open("validation/leave_one_out")


def test_an_automatic_damping_of_another_fit_does_not_serve(finished_project, tmp_path):
    project = finished_project.copy(tmp_path)
    project.write_model(LINEAR)
    project.write_settings(
        model={"fit": "tiny_model:trained", "minimum": "ignore"},
        damping="auto",
        methods={"cg": {"curvature": "gauss_newton"}, "direct": {"curvature": "gauss_newton"}},
        validation={"label_errors": {"share": 0.2}},
    )
    project.refresh()
    project.write_model(LINEAR.replace("pass", "module.weight.data.mul_(0.5)"))
    bench = project.bench()
    others = [n for n in artifacts(bench.study) if not n.name.startswith("direct/")]
    with pytest.raises(StudyError, match=r"tiny/direct/curvature is of another θ"):
        _ = [node.refresh(bench) for node in others]


def test_the_factor_of_another_damping_does_not_serve(finished_project, tmp_path, monkeypatch):
    """With damping: auto each method has its own; the factor refuses all but that of `direct`."""
    for module in (refits, sys.modules["influence_dag.validation.leave_one_out"]):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    project = finished_project.copy(tmp_path)
    project.write_model(LINEAR)
    project.write_settings(
        model={"fit": "tiny_model:trained", "minimum": "ignore"},
        damping="auto",
        methods={"cg": None, "direct": {"on_indefinite": "raise"}, "ekfac": {}},
        validation={"leave_one_out": {"rows": 3, "method": "ekfac"}},
    )
    project.refresh()
    assert "corrected" not in project.results.open("validation/leave_one_out")


def test_methods_are_scored_beside_exact_solves_and_baselines(validated):
    found = validated.results.open("validation/datamodels")
    candidates = found.candidate.values.tolist()
    baselines = {"gradient_dot", "loss", "representation_cosine", "nearest_neighbours"}
    assert {"direct", "cg", "hessian"} | baselines <= set(candidates)
    lds = dict(zip(candidates, found.lds.mean("test").values, strict=True))
    assert lds["direct"] == pytest.approx(lds["hessian"])
    assert lds["direct"] > 0.5


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize(("start", "seeds"), [("same", [0, 0, 0]), ("others", [1, 2, 3])])
def test_subsets_models_start_at_fresh_weights(validated, tmp_path, monkeypatch, start, seeds):
    project = validated.copy(tmp_path)
    project.write_settings(validation={"datamodels": {"count": 3, "initial_weights": start}})
    monkeypatch.setattr(refits, "MOST_STEPS", 0)  # where they start is where they end
    with warnings.catch_warnings(action="ignore"):  # losses that are all the same have no ranks
        project.refresh()
    stored = project.results.open("validation/datamodels")
    x, y = project.tensors("test")
    expected = [F.cross_entropy(fresh(seed)(x), y, reduction="none").detach() for seed in seeds]
    np.testing.assert_allclose(stored.found, torch.stack(expected), rtol=1e-6)
    assert ("seeds 1 to 3" if start == "others" else "seed 0") in stored.attrs["refits_start"]


def test_scores_follow_from_what_is_stored(validated):
    stored = validated.results.open("validation/datamodels")
    assert json.loads(stored.attrs["info"])["converged"] == 8
    assert (stored.membership.sum("train") == 20).all()
    influences = validated.results["direct"].influences.sel(train=stored.train.values)
    predicted = -(influences @ stored.membership.astype(float))
    expected = [
        spearmanr(predicted.sel(test=row), stored.found.sel(test=row))[0]
        for row in stored.test.values
    ]
    np.testing.assert_allclose(stored.lds.sel(candidate="direct"), expected)


def test_a_damping_is_chosen_on_one_draw_and_scored_on_another(validated, tmp_path):
    project = validated.copy(tmp_path)
    project.write_settings(
        methods={"cg": None}, validation={"datamodels": {"count": 6, "dampings": [0.05, 1.0]}}
    )
    project.refresh()
    attrs = project.results.open("validation/datamodels").attrs
    assert attrs["dampings_chosen_on"] == "subsets drawn from seed 0"
    assert attrs["scored_on"] == "subsets drawn from seed 1"
    scores = json.loads(attrs["info"])["scores"]
    assert scores["hessian"]["damping"] in (0.05, 1.0)
    assert scores["direct"]["damping"] == 0.05


def test_flipped_labels_are_ranked(validated):
    found = validated.results.open("validation/label_errors")
    assert int(found.flipped.sum()) == 8
    rankings = {
        *("self_influence", "loss", "out_of_fold_loss"),
        *("neighbour_disagreement", "knn_shapley", "combined"),
    }
    assert set(found) == rankings | {"flipped"}
    assert all(found[name].notnull().all() for name in rankings)
    info = json.loads(found.attrs["info"])
    auc = roc_auc_score(found.flipped, found.combined)
    assert info["combined"]["auc"] == pytest.approx(auc)
    assert info["knn_shapley"]["auc"] == pytest.approx(
        roc_auc_score(found.flipped, -found.knn_shapley)
    )


def test_rankings_that_are_not_asked_for_are_left_out(validated, tmp_path):
    project = validated.copy(tmp_path)
    project.write_settings(
        validation={"leave_one_out": None, "datamodels": None,
                    "label_errors": {"neighbours": 0, "folds": 0}}
    )  # fmt: skip
    project.refresh()
    found = project.results.open("validation/label_errors")
    assert set(found) == {"self_influence", "loss", "combined", "flipped"}


@pytest.mark.parametrize("kind", CHOSEN)
def test_each_validation_is_a_picture_too(validated, kind):
    bench = validated.bench()
    _, picture = VALIDATIONS[kind]
    (drawn,) = picture.drawn(bench, bench.require(f"validation/{kind}"), None).values()
    assert "data:image/png;base64," in drawn


def test_the_settings_that_the_documentation_shows_are_valid():
    (text,) = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    settings = ValidationSettings.model_validate(yaml.safe_load(text)["validation"])
    assert settings.names == tuple(CHOSEN)
    assert settings.datamodels
    assert settings.datamodels.dampings == (0.0015, 0.01)


def test_nothing_is_refitted_when_nothing_changed(validated):
    updates = validated.refresh()
    assert all(updates[f"validation/{kind}"].is_current for kind in CHOSEN)
    assert not validated.updates["validation/datamodels"].is_current


def test_rows_of_a_validation_have_the_ids_of_the_influences(finished_project, tmp_path):
    project = finished_project.copy(tmp_path)
    project.write_settings(validation=CHOSEN)
    for split, rows in project.rows.items():
        numbered = [["first" if k == 0 else str(k), *row[1:]] for k, row in enumerate(rows)]
        project.write(split, numbered)
    project.refresh()
    for split, rows in project.rows.items():
        project.write(split, rows[1:])  # a hole that was named by a word
    project.refresh()
    left_out = project.results.open("validation/leave_one_out")
    influences = project.results["direct"].influences
    assert influences.train.dtype == left_out.left_out.dtype == np.int64
    predicted = influences.sel(train=left_out.left_out, test=left_out.test) / 39
    np.testing.assert_allclose(left_out.predicted, predicted, rtol=1e-12)


def test_dot_products_alone_are_scored_at_no_damping(finished_project, tmp_path):
    project = finished_project.copy(tmp_path)
    project.write_settings(
        damping="auto",
        methods={"direct": None, "cg": None, "identity": {}},
        perturbation=None,
        validation={"datamodels": {"count": 3}},
    )
    project.refresh()
    scores = json.loads(project.results.open("validation/datamodels").attrs["info"])["scores"]
    assert scores["identity"]["damping"] is None
    assert scores["hessian"]["damping"] == 0.05  # of the fit
