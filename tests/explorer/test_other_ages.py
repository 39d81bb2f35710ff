"""What is looked at is told by what it was computed with, whatever has become of the rest since."""

import shutil
import warnings

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.explorer.content import Contents
from influence_dag.explorer.opened import Opened
from influence_dag.explorer.pair import Maps
from influence_dag.explorer.predictions import predictions
from influence_dag.explorer.shown import one
from influence_dag.explorer.suspicion import disagreement
from influence_dag.stages import dataset
from influence_dag.stages.graph import artifacts

WORDS = np.array(["cat", "dog", "eel"])


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Project:
    """A study of words, whose dataset was refreshed alone, with a class that comes first."""
    project = Project(tmp_path_factory.mktemp("words"), perturbation=None, methods={"cg": None})
    for split, rows in project.rows.items():
        project.write(split, [[*row[:4], str(WORDS[row[4]])] for row in rows])
    project.refresh()
    project.write("train", [*project.rows["train"], ["train-99", 0.5, 0.5, 0.5, "ant"]])
    dataset.refresh(project.bench())
    return project


def test_classes_are_those_that_the_model_predicted(words):
    """By the current dataset's each would be the one before it, and every row wrong."""
    results = words.results
    assert results.store.version("dataset").attrs["classes"] == ["ant", *WORDS]
    view = Opened(results).view()
    predicted = results.store.version("direct/summary").read("test_predicted").astype(int)
    seen = predictions(view, "test")
    assert [seen.predicted(k) for k in range(len(predicted))] == WORDS[predicted].tolist()
    labels = np.array([seen.label(k) for k in range(len(predicted))])
    np.testing.assert_array_equal(seen.wrong, WORDS[predicted] != labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of older influences
        suspects = results.suspects(40)
        summary = results.open("direct/summary")
    of_rows = summary["train_predicted"].sel(train=suspects.train.values).values.astype(int)
    assert suspects.predicted.values.tolist() == WORDS[of_rows].tolist()


@pytest.mark.parametrize("harm", ["is damaged", "is gone"])
def test_without_that_dataset_nothing_is_called_wrong(words, tmp_path, harm):
    project = words.copy(tmp_path)
    older = project.results.store.version("dataset", 1).path
    if harm == "is damaged":
        (older / "manifest.json").write_text("{}")
    else:
        shutil.rmtree(older)
    seen = predictions(Opened(project.results).view(), "test")
    assert seen.wrong is None
    assert seen.predicted(0) in ("0", "1", "2")
    with pytest.warns(RuntimeWarning, match="was computed before"):
        assert project.results.suspects(3).predicted.dtype.kind == "i"


def test_losses_are_there_when_influences_were_mended(finished_project, tmp_path):
    """The same numbers as another version; the summary needs none, being of these numbers."""
    project = finished_project.copy(tmp_path)
    chunk = project.results.store.version("direct/influences").path / "influences" / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.unlink()  # linked to where it was copied from
    chunk.write_bytes(content)
    project.refresh()
    store = project.results.store
    ages = [store.version(f"direct/{name}").number for name in ("influences", "summary")]
    assert ages == [2, 1]
    losses = Opened(project.results).view("direct").said("test_loss", "test")
    np.testing.assert_array_equal(losses, store.version("direct/summary").read("test_loss")[:10])


def test_maps_of_another_damping_are_not_those_of_an_influence(tmp_path):
    """A curvature may be of no λ, as a preconditioner is."""
    project = Project(tmp_path, methods={"direct": None}, perturbation={"methods": ["cg"]})
    project.refresh()
    project.write_settings(damping=0.7)
    bench = project.bench()
    for node in artifacts(bench.study):
        if node.name != "cg/perturbation_influences":  # the refresh has not come to it
            node.refresh(bench)
    opened = Opened(project.results)
    maps = Maps(Contents(opened))
    new, old = (opened.view("cg", version=number) for number in (2, 1))
    assert (new.shown_damping, old.shown_damping) == (0.7, 0.05)
    pair = new.test.ids[0], new.train.ids[0]
    assert maps.of(new, *pair) == ({}, "none")
    assert maps.of(old, *pair)[1] == "stored"


def test_neighbours_are_those_of_the_dataset_that_is_there_now(finished_project, tmp_path):
    """Also while the influences that are looked at stay the same."""
    project = finished_project.copy(tmp_path)
    opened = Opened(project.results)
    before = disagreement(opened.view("direct"))
    project.edit("train", 0, height=9.0, label=2)
    dataset.refresh(project.bench())
    now, anew = (disagreement(each.view("direct")) for each in (opened, Opened(project.results)))
    np.testing.assert_array_equal(now, anew)
    assert np.isfinite(before[0])
    assert np.isnan(now[0])


TWO = """
import torch
from torch import nn


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, a, b):
        return self.linear(torch.cat([a, b], 1))


def build():
    return Both()
"""


def test_rows_of_other_inputs_than_those_of_now_are_looked_at(tmp_path):
    files = {split: f"{split}.npz" for split in ("train", "test")}
    project = Project(tmp_path, methods={"cg": None}, perturbation=None, model=TWO)
    project.settings["data"] = files
    project.write_settings()
    rng, numbers = np.random.default_rng(0), {"train": 12, "test": 4}

    def write(*names):
        for split, n in numbers.items():
            arrays = {name: rng.normal(size=(n, 3)) for name in names}
            np.savez(tmp_path / files[split], y=np.arange(n) % 3, **arrays)

    write("a", "b")
    project.refresh()
    write("x")
    dataset.refresh(project.bench())
    opened = Opened(project.results)
    view, contents = opened.view("direct"), Contents(opened)
    found = one(view, contents, "test", view.test.ids[0], {})
    assert [each["name"] for each in found["row"]["inputs"]] == ["a", "b"]
    assert contents.values(view.test, 0, "x") is None
