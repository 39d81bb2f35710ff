"""Whole numbers that a regression is of (an age, a count) are amounts, and no classes."""

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.datasets.neighbours import have_classes, points
from influence_dag.errors import StudyError
from influence_dag.explorer.opened import Opened
from influence_dag.explorer.predictions import labels_of, predictions
from influence_dag.suspicion import neighbour_disagreement

MODEL = """\
from torch import nn


def build():
    return nn.Linear(3, 1)
"""

POISSON = """\
from torch.nn.functional import poisson_nll_loss


def poisson(output, target):
    return poisson_nll_loss(output[:, 0] / 50, target / 50, reduction="none")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project(
        tmp_path_factory.mktemp("amounts"),
        model=MODEL,
        perturbation=None,
        methods={"cg": None},
    )
    project.settings["model"] |= {"loss": "mse"}
    project.write_settings()
    for split, rows in project.rows.items():
        amounts = [[*row[:4], round(50 + 9 * row[1] - 4 * row[2])] for row in rows]
        project.write(split, amounts)
    project.refresh()
    return project


def test_neighbours_of_amounts_are_apart_by_a_distance(project):
    suspects = project.results.suspects(40)
    assert "predicted" not in suspects
    assert "knn_shapley" not in suspects, "which is of classes"
    labels = np.array([row[4] for row in project.rows["train"]], np.float64)
    names = [row[0] for row in project.rows["train"]]
    apart = neighbour_disagreement(
        points(project.results.store.version("dataset"), "train", np.arange(len(labels))), labels
    )
    found = suspects.neighbour_disagreement.sel(train=names)
    np.testing.assert_allclose(found, apart)


def test_the_explorer_holds_no_amount_for_wrong(project):
    view = Opened(project.results).view()
    seen = predictions(view, "train")
    assert seen.wrong is None
    assert float(seen.predicted(0)) == pytest.approx(seen.values[0], rel=1e-3)
    assert labels_of(view, "train") == [], "nothing to choose among"


def test_a_row_can_be_given_any_other_amount(project):
    """The gradient of a squared error is linear in the target."""
    named = {name: {"train-04": name} for name in (47, 47.5, 48)}
    low, middle, high = (
        project.results.relabelled_influences("direct", labels).values for labels in named.values()
    )
    np.testing.assert_allclose(middle, (low + high) / 2, rtol=1e-9)
    assert not np.allclose(low, middle)


def test_amounts_are_not_flipped(project, tmp_path):
    copied = project.copy(tmp_path / "flipped")
    copied.write_settings(validation={"label_errors": {"folds": 0}})
    with pytest.raises(StudyError, match=r"with model.loss mse .* amounts: \d+ whole numbers from"):
        copied.refresh()


def test_of_two_amounts_one_is_taken_for_the_other(project, tmp_path):
    """Least squares on 0 and 1 tells two classes apart."""
    copied = project.copy(tmp_path / "two")
    for split, rows in copied.rows.items():
        copied.write(split, [[*row[:4], int(row[4] > 50)] for row in rows])
    copied.write_settings(validation={"label_errors": {"folds": 0, "share": 0.2}})
    copied.refresh()
    assert copied.results.open("validation/label_errors").flipped.sum() == 8


@pytest.mark.parametrize("loss", ["mse", "own_loss:poisson"])
def test_amounts_are_alike_by_what_the_last_layer_takes(project, tmp_path, loss):
    """The cosine has no sign of equal labels, and amounts have no nearest-neighbour classifier."""
    copied = project.copy(tmp_path / "alike")
    (copied.root / "own_loss.py").write_text(POISSON)
    copied.write_settings(model={"loss": loss}, validation={"datamodels": {"count": 4}})
    copied.refresh()
    found = copied.results.open("validation/datamodels")
    assert "representation_cosine" in found.candidate
    assert "nearest_neighbours" not in found.candidate


@pytest.mark.parametrize(
    ("loss", "predicted", "classes"),
    [
        ("cross_entropy", None, True),
        ("mse", [1.0, 2.0], False),
        ("own:loss", None, True),
        ("own:loss", [1.0, np.nan], True),
        ("own:loss", [1.0, 0.5], False),
    ],
)
def test_whole_numbers_are_classes_where_loss_or_predictions_say_so(
    project, loss, predicted, classes
):
    known = None if predicted is None else np.array(predicted)
    assert have_classes(project.results.store.version("dataset"), loss, known) is classes
