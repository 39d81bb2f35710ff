"""Labels that are words, and columns that travel along, from the file to what is shown."""

import csv
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from tiny_project import COLUMNS, Project
from torch import nn

from influence_dag.datasets.slots import Axis
from influence_dag.errors import DataError, ModelError, StudyError
from influence_dag.query.drawn import _name, summary
from influence_dag.query.suspects import suspects
from influence_dag.query.text import describe
from influence_dag.stages import dataset, foreseen, model
from influence_dag.stages.foreseen import foresee
from influence_dag.stages.status import status

WORDS = ["setosa", "Versicolor", "virginica"]  # of the labels 0, 1, 2; capitals sort first
SORTED = sorted(WORDS)


def write_words(project: Project, words: list[str] = WORDS) -> None:
    """The project's files with words for labels and a sentence beside the features."""
    for split, rows in project.rows.items():
        with (project.root / f"{split}.csv").open("w", newline="") as file:
            named = [[*row[:4], f"note of {row[0]}, “quoted”", words[row[4]]] for row in rows]
            csv.writer(file).writerows([[*COLUMNS[:4], "free text", "label"], *named])


def worded(root, **changes) -> Project:
    project = Project(root)
    project.write_settings(**{"data": {"keep": ["free text"]}, **changes})
    write_words(project)
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    project = worded(tmp_path_factory.mktemp("words"))
    project.materialize()
    return project


def test_words_are_the_labels_of_every_array(finished):
    expected = [WORDS[row[4]] for row in finished.rows["train"]]
    for array in (finished.results["direct"], finished.results.perturbation("direct")):
        assert array.train_label.values.tolist() == expected
        assert array["train_free_text"].values[3] == "note of train-03, “quoted”"
        assert array["test_free_text"].values[0].startswith("note of test-00")
    plain = xr.open_zarr(finished.store / "cg/influences/current")
    assert plain.train_label.values.tolist() == expected
    assert (
        finished.results.open("dataset").attrs["classes"] == '["Versicolor", "setosa", "virginica"]'
    )


def test_numbers_are_those_of_labels_in_that_order(finished, tmp_path):
    """The same study with the positions of the sorted words as labels."""
    numbered = Project(tmp_path)
    for split, rows in numbered.rows.items():
        numbered.write(split, [[*row[:4], SORTED.index(WORDS[row[4]])] for row in rows])
    numbered.refresh()
    for read in (lambda r: r["direct"].influences, lambda r: r.perturbation("direct")):
        np.testing.assert_array_equal(read(finished.results), read(numbered.results))


def test_means_by_label_are_named(finished):
    influences = finished.results["direct"].influences
    means = influences.idag.by_label()
    assert means.train_label.values.tolist() == SORTED
    of_setosa = influences.sel(train=influences.train_label == "setosa").mean("train")
    np.testing.assert_allclose(means.sel(train_label="setosa"), of_setosa)


def test_what_is_shown_has_the_words_and_the_texts(finished):
    text = describe(finished.results)
    assert "test-00 (setosa)  note of test-00, “quoted”" in text
    assert "(Versicolor)  note of train-" in text
    version = finished.results.store.version("direct/summary")
    axis = Axis.read(version, "train")
    assert _name(axis, 0) == "train-00 (setosa)"
    first, *_ = summary(finished.bench(), version, "direct")["strongest"]
    assert "(setosa)" in first["test"]
    assert "(" in first["helps most"]


def test_suspects_are_predicted_words(finished):
    found = suspects(finished.results, 40)
    assert set(found.predicted.values.tolist()) <= set(WORDS)
    assert (found.predicted == found.train_label).mean() > 0.6


def test_an_edited_text_moves_no_number(finished, tmp_path):
    project = finished.copy(tmp_path)
    frame = pd.read_csv(project.root / "train.csv")
    frame.loc[5, "free text"] = "another"
    frame.to_csv(project.root / "train.csv", index=False)
    updates = project.refresh()
    computed = {name for name, update in updates.items() if update.blocks_computed}
    assert computed <= {"report"}  # which follows whatever is another version
    influences = project.results["direct"].influences
    assert influences["train_free_text"].values[5] == "another"
    assert status(project.folder).is_current


def test_a_row_that_goes_takes_its_text_along(finished, tmp_path):
    project = finished.copy(tmp_path)
    frame = pd.read_csv(project.root / "train.csv")
    frame.drop(index=7).to_csv(project.root / "train.csv", index=False)
    project.refresh()
    influences = project.results["direct"].influences
    assert "train-07" not in influences.train.values
    assert influences.sel(train="train-08")["train_free_text"].item().startswith("note of train-08")


def test_words_and_numbers_for_the_wrong_loss_are_refused(tmp_path):
    project = worded(tmp_path, model={"loss": "mse"})
    with pytest.raises(DataError, match=r"'label' holds words \(Versicolor.*mse wants numbers"):
        project.refresh()


# Models that were fitted elsewhere


def given_model(root, order: list[str], **data) -> Project:
    """A project with a checkpoint whose outputs are in an order of its own."""
    project = worded(
        root,
        model={"fit": None, "checkpoint": "given.safetensors"},
        data={"keep": ["free text"], **data},
        damping=0.05,
    )
    x, y = project.tensors("train", torch.float32)
    position = torch.tensor([order.index(word) for word in WORDS])
    torch.manual_seed(0)
    fitted = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        penalty = 0.025 * sum(p.square().sum() for p in fitted.parameters())
        loss = nn.functional.cross_entropy(fitted(x), position[y]) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    save_file(fitted.state_dict(), root / "given.safetensors")
    return project


ORDER = ["virginica", "setosa", "Versicolor"]


def test_a_given_model_needs_the_order_of_its_outputs(tmp_path):
    project = given_model(tmp_path, ORDER)
    with pytest.raises(DataError, match=r"order of the model's outputs, for example data\.classes"):
        project.refresh()


def test_words_of_a_fitted_model_are_asked_for_their_order_when_a_model_is_given(
    finished, tmp_path
):
    """The rows are stored, and served a model that was fitted to them in the alphabet's order."""
    project = finished.copy(tmp_path / "given")
    content = project.bench().require("model").file("model.safetensors")
    (project.root / "given.safetensors").write_bytes(content)
    project.write_settings(model={"fit": None, "checkpoint": "given.safetensors"}, damping=0.1)
    told = r"order of the model's outputs, for example data\.classes"
    for ask in (project.refresh, project.materialize, lambda: status(project.folder)):
        with pytest.raises(DataError, match=told):
            ask()
    project.write_settings(data={"classes": SORTED})
    assert not project.refresh()["dataset"].blocks_computed


def test_a_given_model_has_its_outputs_in_the_stated_order(tmp_path):
    project = given_model(tmp_path, ORDER, classes=ORDER)
    project.refresh()
    found = suspects(project.results, 40)
    assert (found.predicted == found.train_label).mean() > 0.6


def test_an_order_no_better_than_chance_is_told_with_the_one_that_is(tmp_path):
    project = given_model(tmp_path, ORDER, classes=[*ORDER[1:], ORDER[0]])
    with pytest.raises(ModelError, match="no better than chance") as caught:
        project.refresh()
    assert f"under {ORDER} it would be right on" in str(caught.value)


@pytest.mark.parametrize("of_one_class", [False, True])
def test_an_order_is_judged_by_rows_of_several_classes(tmp_path, monkeypatch, of_one_class):
    """A sorted file begins with one class, of which every order is at chance."""
    monkeypatch.setattr(foreseen, "TRIED", 12)
    project = given_model(tmp_path, ORDER, classes=ORDER)
    rows = sorted(project.rows["train"], key=lambda row: row[4])
    project.rows["train"] = rows[:12] if of_one_class else rows
    write_words(project)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not foresee(project.folder).warnings


def test_an_order_that_changes_is_looked_at_again(tmp_path):
    """θ does not depend on it, and stays; what its outputs are taken for does."""
    project = given_model(tmp_path, ORDER, classes=ORDER)
    project.refresh()
    project.write_settings(data={"classes": [*ORDER[1:], ORDER[0]]})
    with pytest.raises(ModelError, match="no better than chance"):
        project.refresh()
    project.write_settings(data={"classes": ORDER})
    project.refresh()


def test_a_given_model_that_no_order_helps_is_told(tmp_path):
    project = given_model(tmp_path, ORDER, classes=ORDER)
    untrained = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    save_file(
        {k: torch.zeros_like(v) for k, v in untrained.state_dict().items()},
        tmp_path / "given.safetensors",
    )
    bench = project.bench()
    dataset.refresh(bench)
    with pytest.warns(RuntimeWarning, match="no better than chance.*no other order is better"):
        model.refresh(bench)


def test_a_pinned_theta_refuses_labels_that_would_meet_other_outputs(finished, tmp_path):
    """Words are numbered by their alphabet: without the first, those behind it move."""
    project = finished.copy(tmp_path)
    project.write_settings(model={"refit": "pinned"}, curvature={"refresh": "pinned"})
    before = project.results["direct"].influences.load()
    for split, rows in project.rows.items():
        project.rows[split] = [row for row in rows if WORDS[row[4]] != SORTED[0]]
    write_words(project)
    said = rf"outputs for the classes {', '.join(SORTED)}, .* are {', '.join(SORTED[1:])} now"
    for ask in (project.refresh, lambda: status(project.folder)):
        with pytest.raises(StudyError, match=said):
            ask()
    project.write_settings(data={"classes": SORTED})
    project.refresh()  # as the refusal says
    found = project.results["direct"].influences
    assert found.sizes["train"] < before.sizes["train"]
    rest = before.sel(test=found.test.values, train=found.train.values)
    np.testing.assert_allclose(found, rest, rtol=1e-9)
    project.write_settings(data={"classes": SORTED[::-1]})
    with pytest.raises(StudyError, match="it would be asked for others"):
        project.refresh()


@pytest.mark.parametrize("named", ["in the settings", "in the files"])
def test_a_pinned_theta_refuses_names_for_numbers_that_were_other_outputs(tmp_path, named):
    """Whole numbers are the outputs that they count: as names in another order they are others."""
    project = Project(tmp_path)
    project.refresh()
    before = project.results["direct"].influences.load()
    project.write_settings(model={"refit": "pinned"})
    if named == "in the files":
        write_words(project)
        project.write_settings(data={"keep": ["free text"]})
    else:
        project.write_settings(data={"classes": ["2", "1", "0"]})
    said = r"classes 0, 1, 2, …, in this order, .* in the order of the model's outputs 0, 1, 2, …"
    with pytest.raises(StudyError, match=said):
        project.refresh()
    project.write_settings(data={"classes": WORDS if named == "in the files" else ["0", "1", "2"]})
    project.refresh()  # the labels in the order of the outputs, as the refusal says
    np.testing.assert_allclose(project.results["direct"].influences, before, rtol=1e-12)


def test_a_pinned_theta_of_named_outputs_refuses_numbers_that_count_others(tmp_path):
    project = Project(tmp_path)
    project.write_settings(data={"classes": ["2", "1", "0"]})
    project.refresh()
    project.settings["data"].pop("classes")
    project.write_settings(model={"refit": "pinned"})
    with pytest.raises(StudyError, match="classes 2, 1, 0, in this order, and the labels are 0, 1"):
        project.refresh()
