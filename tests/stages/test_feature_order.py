"""A kept θ meets the features that it was made from, by their names: or it is refused."""

import csv

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_project import COLUMNS, Project

from influence_dag.errors import StudyError
from influence_dag.stages.status import status

ORDER = ["id", "depth", "height", "width", "label"]
MODEL = "from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 3)\n"


@pytest.fixture
def convex(tmp_path) -> Project:
    """A study whose θ does not depend on where the fit began."""
    project = Project(tmp_path, model=MODEL)
    fit = {"tolerance": 1e-12}
    project.write_settings(model={"fit": fit}, methods={"cg": None}, perturbation=None)
    project.refresh()
    return project


def reorder(project: Project, order: list[str], names: list[str] | None = None) -> None:
    """The same values under the same names (or others), the columns in another order."""
    for split, rows in project.rows.items():
        moved = [[row[COLUMNS.index(column)] for column in order] for row in rows]
        with (project.root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([names or order, *moved])


def influences(project: Project) -> np.ndarray:
    return project.results["direct"].influences.values


def test_a_pinned_theta_refuses_another_order_and_names_both(convex):
    before = influences(convex)
    convex.write_settings(model={"refit": "pinned"})
    reorder(convex, ORDER)
    words = r"features height, width, depth, .* have depth, height, width: .*refit: on_change"
    with pytest.raises(StudyError, match=words):
        convex.refresh()
    with pytest.raises(StudyError, match=words):
        status(convex.folder)
    np.testing.assert_array_equal(influences(convex), before)


def test_columns_in_a_shape_have_an_order_too(tmp_path):
    """Their axes have positions for labels, and nothing told that they had changed places."""
    model = MODEL.replace("nn.Linear(3, 3)", "nn.Sequential(nn.Flatten(), nn.Linear(3, 3))")
    shaped = {"features": {"shape": [3, 1]}}
    project = Project(tmp_path, model=model, data=shaped)
    project.write_settings(methods={"cg": None}, perturbation=None, model={"refit": "pinned"})
    project.refresh()
    reorder(project, ORDER)
    with pytest.raises(StudyError, match=r"features height, width, depth, .* have depth, height"):
        project.refresh()
    reorder(project, ORDER, ["id", "d", "h", "w", "label"])  # other features, by their names
    project.refresh()


def test_the_setting_that_the_refusal_names_gives_the_same_numbers(convex):
    before, theta = influences(convex), convex.data_versions()["model"]
    convex.write_settings(model={"refit": "pinned"})
    reorder(convex, ORDER)
    convex.write_settings(data={"features": {"columns": ["height", "width", "depth"]}})
    convex.refresh()
    np.testing.assert_array_equal(influences(convex), before)
    assert convex.data_versions()["model"] == theta


def test_a_theta_that_follows_is_fitted_in_the_new_order(convex):
    before = influences(convex)
    reorder(convex, ORDER)
    convex.refresh()
    weight = load_file(convex.store / "model/current/model.safetensors")["weight"]
    assert weight.shape == (3, 3)
    np.testing.assert_allclose(influences(convex), before, rtol=1e-6, atol=1e-7)


def test_new_names_in_their_old_places_are_only_names(convex):
    before = influences(convex)
    convex.write_settings(model={"refit": "pinned"})
    reorder(convex, COLUMNS, ["id", "a", "width", "c", "label"])
    convex.refresh()
    np.testing.assert_array_equal(influences(convex), before)
    reorder(convex, COLUMNS, ["id", "a", "height", "c", "label"])
    with pytest.raises(StudyError, match=r"features height, width, depth, in this order"):
        convex.refresh()


def test_a_header_that_is_renamed_does_not_leave_old_names_with_theta(convex):
    """Renamed at a θ that follows, pinned afterwards: the names are those of the last fit."""
    before = influences(convex)
    reorder(convex, COLUMNS, ["id", "a", "b", "c", "label"])
    convex.refresh()
    convex.write_settings(model={"refit": "pinned"})
    assert all(update.is_current for update in convex.refresh().values())
    np.testing.assert_array_equal(influences(convex), before)


def test_a_checkpoint_refuses_another_order_and_takes_other_names(convex):
    state = load_file(convex.store / "model/current/model.safetensors")
    save_file(state, convex.root / "theta.safetensors")
    model = {"checkpoint": "theta.safetensors", "fit": None}
    convex.write_settings(model=model, damping=0.05)
    convex.refresh()
    before = influences(convex)
    reorder(convex, ORDER)
    with pytest.raises(StudyError, match=r"data\.features\.columns: .height, width, depth., or"):
        convex.refresh()
    reorder(convex, COLUMNS, ["id", "a", "b", "c", "label"])
    convex.refresh()
    np.testing.assert_array_equal(influences(convex), before)
    save_file(
        {**state, "weight": state["weight"][:, [2, 0, 1]].contiguous()},
        convex.root / "theta.safetensors",
    )
    reorder(convex, ORDER)
    convex.refresh()
    np.testing.assert_allclose(influences(convex), before, rtol=1e-9)
