import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file
from tiny_project import Project
from torch import nn
from torch.nn import functional as F

from influence_dag import suspects
from influence_dag.datasets.slots import Axis
from influence_dag.errors import StoreError
from influence_dag.explorer.opened import Opened
from influence_dag.explorer.predictions import predictions
from influence_dag.explorer.suspicion import disagreement, ranks, suspicion
from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Rows
from influence_dag.study.model import FitSettings
from influence_dag.suspicion import (
    SUSPICIONS,
    combined_suspicion,
    knn_shapley,
    neighbour_disagreement,
    votes,
)
from influence_dag.validation.out_of_fold import draw_folds

WRONG = [3, 17]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """40 training rows, two of which have the label of another cloud, far out in their own."""
    project = Project(tmp_path_factory.mktemp("mislabelled"), methods={"cg": None})
    for position in WRONG:
        label = project.rows["train"][position][-1]
        x = [4.0 * (label == k) for k in range(3)]
        project.edit("train", position, label=(label + 1) % 3, height=x[0], width=x[1], depth=x[2])
    project.refresh()
    return project


@pytest.fixture
def module(project) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    module.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    return module


def test_mislabelled_rows_come_first(project):
    found = suspects(project.store, 2, by="self_influence")
    assert sorted(found.train.values) == [f"train-{position:02d}" for position in WRONG]
    for row in found.train.values:
        one = found.sel(train=row)
        position = int(row.split("-")[1])
        assert int(one.train_label) == project.rows["train"][position][-1]
        assert int(one.predicted) != int(one.train_label)


def test_self_influence_and_loss_are_the_stored_models(project, module):
    found = suspects(project.results, 40, by="self_influence")
    x, y = project.tensors("train")
    influences = reference.influences(module, F.cross_entropy, (x, y), (x, y), 0.05).diagonal()
    losses = F.cross_entropy(module(x), y, reduction="none").detach()
    order = [int(row.split("-")[1]) for row in found.train.values]
    assert sorted(order) == list(range(40))
    assert np.allclose(found.self_influence, influences[order], rtol=1e-6)
    assert (np.diff(found.self_influence) <= 0).all()
    assert np.allclose(found.loss, losses[order])
    assert torch.equal(torch.tensor(found.predicted.values), module(x).argmax(dim=1)[order])


def test_a_table_of_them_has_a_line_for_each(project):
    table = suspects(project.store, 3).to_dataframe()
    assert len(table) == 3
    assert {"self_influence", "loss", "predicted", "train_label"} <= set(table.columns)


def test_what_neighbours_and_model_say_stands_beside_each_row_and_ranks_them(project, module):
    found = suspects(project.store, 40, neighbours=5)
    assert (np.diff(found.combined) <= 0).all()
    rows = found.sortby("train")
    x, y = (each.numpy() for each in project.tensors("train"))
    tests, labels = (each.numpy() for each in project.tensors("test"))
    assert np.allclose(rows.neighbour_disagreement, neighbour_disagreement(x, y, k=5))
    assert np.allclose(rows.knn_shapley, knn_shapley(x, y, tests, labels, k=5))
    views = {name: rows[name].values for name in rows if name in SUSPICIONS}
    voted, right = votes(x, y, tests, labels, k=5), module(torch.tensor(tests)).argmax(dim=1)
    known = voted.evidence(right.numpy() == labels)
    assert known.trust[1] > 0
    assert np.allclose(rows.combined, combined_suspicion(views, known))
    shapley = suspects(project.store, 40, neighbours=5, by="knn_shapley").knn_shapley
    assert (np.diff(shapley) >= 0).all()


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Project:
    """Four training rows and a test row have the class that the loss leaves out."""
    project = Project(tmp_path_factory.mktemp("unlabelled"), methods={"cg": None})
    for split, positions in (("train", [3, 4, 5, 20]), ("test", [2])):
        for position in positions:
            project.edit(split, position, label=-100)
    project.refresh()
    return project


def test_rows_without_a_label_are_no_suspects_and_no_neighbours(unlabelled):
    (x, y), (tests, labels) = (
        tuple(each[unlabelled.tensors(split)[1] >= 0].numpy() for each in unlabelled.tensors(split))
        for split in ("train", "test")
    )
    found = suspects(unlabelled.store, 40, neighbours=5, folds=4).sortby("train")
    assert found.train_label.values.tolist() == y.tolist()
    assert np.allclose(found.neighbour_disagreement, neighbour_disagreement(x, y, k=5))
    assert np.allclose(found.knn_shapley, knn_shapley(x, y, tests, labels, k=5))
    views = {name: found[name].values for name in found if name in SUSPICIONS}
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    module.load_state_dict(load_file(unlabelled.store / "model/current/model.safetensors"))
    losses = F.cross_entropy(module(torch.tensor(x)), torch.tensor(y), reduction="none").detach()
    assert np.allclose(found.loss, losses)
    right = module(torch.tensor(tests)).argmax(dim=1).numpy() == labels
    known = votes(x, y, tests, labels, k=5).evidence(right)
    assert np.allclose(found.combined, combined_suspicion(views, known))
    assert (found.out_of_fold_loss > 0).all()


def test_where_no_training_row_has_a_label_none_is_suspect(tmp_path):
    fit = {"optimizer": "adam", "max_steps": 1, "weight_decay": 0.1}
    project = Project(tmp_path, perturbation=None)
    project.write_settings(methods={"cg": None}, model={"fit": fit})
    project.write("train", [[*row[:-1], -100] for row in project.rows["train"][:8]])
    project.refresh()
    with pytest.raises(StoreError, match="no training row with a self-influence has a label"):
        suspects(project.store, 3)
    assert disagreement(Opened(project.results).view()) is None


def test_the_explorer_says_the_same_of_rows_without_a_label(unlabelled):
    view = Opened(unlabelled.results).view()
    said, found = suspicion(view), suspects(unlabelled.store, 40).sortby("train")
    bare = unlabelled.tensors("train")[1].numpy() < 0
    assert np.isnan(said[bare]).all()
    assert np.allclose(said[~bare], found.combined)
    assert np.isnan(disagreement(view)[bare]).all()
    assert not predictions(view, "test").wrong[2]
    assert sorted(ranks(view)[bare]) == [37, 38, 39, 40]


def test_no_test_row_needs_a_label(tmp_path):
    project = Project(tmp_path, methods={"cg": None})
    for position in range(10):
        project.edit("test", position, label=-100)
    project.refresh()
    x, y = (each.numpy() for each in project.tensors("train"))
    for asked in ({}, {"folds": 4}, {"space": "penultimate"}):
        found = suspects(project.store, 40, **asked).sortby("train")
        assert "knn_shapley" not in found
        assert np.isfinite(found.combined).all()
    found = suspects(project.store, 40, neighbours=10).sortby("train")
    assert np.allclose(found.neighbour_disagreement, neighbour_disagreement(x, y, k=10))
    assert np.allclose(suspicion(Opened(project.results).view()), found.combined)
    with pytest.raises(StoreError, match="no knn_shapley: it needs classes, and test rows that"):
        suspects(project.store, 40, by="knn_shapley")


def test_rows_that_are_named_by_numbers_are_as_suspect(project, tmp_path):
    numbered = project.copy(tmp_path, artifacts=())
    for split, first in (("train", 100), ("test", 900)):
        numbered.write(split, [[first + k, *row[1:]] for k, row in enumerate(project.rows[split])])
    numbered.refresh()
    found, named = (suspects(each.store, 40).sortby("train") for each in (numbered, project))
    np.testing.assert_allclose(found.combined, named.combined)


def test_neighbours_in_the_penultimate_space_and_losses_out_of_fold_run_the_studys_code(
    project, module
):
    found = suspects(project.store, 40, space="penultimate", folds=4).sortby("train")
    x, y = project.tensors("train")
    hidden = module[:2](x).detach().numpy()
    assert np.allclose(found.neighbour_disagreement, neighbour_disagreement(hidden, y.numpy()))
    fold = torch.empty(40, dtype=torch.long)
    fold[Axis.read(project.results.store.version("dataset"), "train").drawn] = draw_folds(
        40, folds=4
    )
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    settings = FitSettings(weight_decay=0.05, tolerance=1e-5, seed=0)
    fit(fresh, "cross_entropy", Rows(x[fold != 2], y[fold != 2]), settings)
    unseen = F.cross_entropy(fresh(x[fold == 2]), y[fold == 2], reduction="none").detach()
    assert np.allclose(found.out_of_fold_loss[(fold == 2).numpy()], unseen, rtol=1e-2)


def test_rankings_that_are_not_there_are_refused(project):
    with pytest.raises(StoreError, match=r"no ranking 'los'.*did you mean 'loss'"):
        suspects(project.store, by="los")
    with pytest.raises(StoreError, match=r"space=.inputs. is unknown; choose one of auto, input"):
        suspects(project.store, space="inputs")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="ask for folds=5"):
        suspects(project.store, by="out_of_fold_loss")
    with pytest.raises(StoreError, match="no neighbour_disagreement without neighbours; ask for"):
        suspects(project.store, by="neighbour_disagreement", neighbours=0)
    with pytest.raises(StoreError, match=r"space='input' is where .* neighbours=0 looks for none"):
        suspects(project.store, neighbours=0, space="input")
    for asked in ({"neighbours": 2.5}, {"folds": "3"}):
        with pytest.raises(StoreError, match="take whole numbers, neighbours 0"):
            suspects(project.store, **asked)
    for k in (2.5, "5", 0):
        with pytest.raises(StoreError, match=r"k is .*; ask for a whole number of rows"):
            suspects(project.store, k)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="folds=1: take"):
        suspects(project.store, folds=1)


def test_the_damping_of_a_sweep_can_be_chosen(project, tmp_path):
    swept = project.copy(tmp_path)
    swept.write_settings(damping=[0.05, 1.0])
    swept.refresh()
    first, last = (suspects(swept.store, 40, damping=damping) for damping in (0.05, 1.0))
    once = suspects(project.store, 40).sortby("train").self_influence
    assert np.allclose(first.sortby("train").self_influence, once, rtol=1e-6)
    assert float(last.self_influence.max()) < float(first.self_influence.max())
    assert last.self_influence.equals(suspects(swept.store, 40).self_influence)
    with pytest.raises(StoreError, match=r"damping 0.3 is none of those stored: \[0.05, 1\]"):
        suspects(swept.store, damping=0.3)


def test_what_is_not_stored_is_said(project, tmp_path):
    with pytest.raises(StoreError, match=r"no self-influence of 'cg' \(stored: direct\)"):
        suspects(project.store, method="cg")
    with pytest.raises(StoreError, match="k is 0"):
        suspects(project.store, 0)
    without = Project(tmp_path, methods={"cg": None}, summary={"self_influence": False})
    without.refresh()
    with pytest.raises(StoreError, match=r"no self-influence \(stored: none\)"):
        suspects(without.store)
