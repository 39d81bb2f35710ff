"""Sums that follow the rows by differences keep their digits, or are formed over all rows again."""

from contextlib import suppress

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file
from tiny_answers import assert_close, expected, in_file_order
from tiny_project import Project
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import IndefiniteError
from influence_dag.stages import matrices
from influence_dag.stages.digits import Digits

DAMPING = 0.5


MODEL = """\
from torch import nn


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.{activation}(), nn.Linear(4, 1))
"""
NETWORKS = {name: MODEL.format(activation=name) for name in ("Identity", "LeakyReLU", "Softplus")}


def regression(root, activation="Softplus", **changes) -> Project:
    """Squared errors: unlike those of saturated classes, the curvature of an outlier is huge."""
    project = Project(root, model=NETWORKS[activation], methods={"cg": None}, damping=DAMPING)
    project.settings = project.settings | {"perturbation": None}
    fit = {"max_steps": 50}  # a θ near a minimum is as good
    project.write_settings(model={"refit": "pinned", "loss": "mse", "fit": fit}, **changes)
    for split in ("train", "test"):
        project.write(split, [[*row[:4], row[4] + 0.25] for row in project.rows[split]])
    project.refresh()
    return project


def module_of(project: Project, activation="Softplus") -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), getattr(nn, activation)(), nn.Linear(4, 1)).double()
    module.load_state_dict(load_file(project.store / "model/current/model.safetensors"))
    return module


def tensors(project: Project, split: str) -> tuple:
    numbers = torch.tensor([row[1:] for row in project.rows[split]], dtype=torch.float64)
    return numbers[:, :3], numbers[:, 3:]


def wanted(project: Project, activation="Softplus") -> np.ndarray:
    rows = tensors(project, "train"), tensors(project, "test")
    return reference.influences(module_of(project, activation), F.mse_loss, *rows, DAMPING).numpy()


def wanted_hessian(project: Project, activation="Softplus") -> np.ndarray:
    module = module_of(project, activation)
    return reference.hessian(module, F.mse_loss, *tensors(project, "train")).numpy()


@pytest.fixture(scope="module", params=["Softplus"])
def finished_pinned(request, tmp_path_factory):
    return regression(tmp_path_factory.mktemp("pinned"), request.param)


@pytest.fixture
def pinned(finished_pinned, tmp_path) -> Project:
    return finished_pinned.copy(tmp_path)


def spoil(project: Project, factor: float, columns=("height",)) -> None:
    """One row's features times a factor, refreshed as far as it goes."""
    row = project.rows["train"][11]
    at = {"height": 1, "width": 2, "depth": 3}
    project.edit("train", 11, **{name: row[at[name]] * factor for name in columns})
    with suppress(IndefiniteError):  # some outliers leave nothing that can be inverted
        project.refresh()


def reports(project: Project) -> tuple[dict, list[str]]:
    said: list[str] = []
    return project.refresh(said.append), said


ONE, ALL = ("height",), ("height", "width", "depth")
SPOILT = ((1e3, ONE), (1e8, ALL), (1e9, ONE), (1e12, ALL))  # by default each once


@pytest.mark.parametrize(
    ("kind", "activation", "spoilt"),
    [
        ("hessian", "Softplus", SPOILT[1:3]),
        ("hessian", "LeakyReLU", SPOILT[3:]),
        ("gauss_newton", "Identity", SPOILT[:1]),
        *(
            pytest.param(kind, activation, SPOILT, marks=pytest.mark.campaign)
            for kind in ("hessian", "gauss_newton")
            for activation in NETWORKS
        ),
    ],
)
def test_a_repaired_outlier_leaves_nothing_behind(tmp_path, kind, activation, spoilt):
    pinned = regression(tmp_path, activation, methods={"direct": {"curvature": kind}})
    good, before = pinned.rows["train"], pinned.results.open(kind)[kind].values
    for factor, columns in spoilt:
        spoil(pinned, factor, columns)
        pinned.write("train", good)
        pinned.refresh()
        assert_close(pinned.results.open(kind)[kind], before, 1e-9)
        if kind == "hessian":
            assert_close(in_file_order(pinned), wanted(pinned, activation), 1e-7)


def test_an_outlier_of_a_classifier_leaves_nothing_behind(project):
    project.write_settings(model={"refit": "pinned"}, damping=DAMPING, perturbation=None)
    project.refresh()
    good = project.rows["train"]
    for factor in (1e4, 1e9):
        spoil(project, factor)
        project.write("train", good)
        project.refresh()
        for method, tolerance in (("direct", 1e-9), ("cg", 1e-8)):
            seen = in_file_order(project, method)
            assert_close(seen, expected(project, "influences", DAMPING), tolerance)


def test_a_row_that_hardly_counts_costs_its_own_difference(pinned):
    good = pinned.rows["train"]
    for rows in (1e-9, None):
        if rows:
            spoil(pinned, rows)
        else:
            pinned.write("train", good)
        assert pinned.refresh()["hessian"].info["rows_differentiated"] == 2
        assert_close(pinned.results.open("hessian").hessian, wanted_hessian(pinned), 1e-13)


def test_all_rows_are_summed_when_a_difference_has_lost_digits_and_it_is_said(pinned):
    good = pinned.rows["train"]
    spoil(pinned, 1e8)
    pinned.write("train", good)
    updates, said = reports(pinned)
    assert updates["hessian"].info["rows_differentiated"] == 40
    (line,) = [line for line in said if "summed again" in line]
    assert line.startswith("hessian: a difference would be wrong by up to")
    pinned.edit("train", 3, depth=0.1)
    assert pinned.refresh()["hessian"].info["rows_differentiated"] == 2, "then differences go on"


def test_the_bound_is_carried_from_version_to_version(pinned):
    bounds = []
    for depth in (0.1, 0.2, 0.3):
        pinned.edit("train", 11, depth=depth)
        pinned.refresh()
        bounds.append(pinned.results.store.version("hessian").attrs["error_of_differences"])
    assert 0 < bounds[0] < bounds[1] < bounds[2] < 1e-12
    rebuilt, seen = wanted_hessian(pinned), pinned.results.open("hessian").hessian.values
    assert np.abs(seen - rebuilt).max() <= bounds[2] * np.abs(rebuilt).max()


def test_a_parameter_of_small_curvature_keeps_its_digits_beside_one_of_large(tmp_path):
    """An outlier among small numbers, which a bound by the size of the whole matrix overlooks."""
    project = regression(tmp_path, "Identity", methods={"direct": {"on_indefinite": "lu"}})
    rows = [[*row[:3], row[3] * 1e5, row[4]] for row in project.rows["train"]]
    project.write("train", rows)
    project.refresh()
    before = project.results.open("hessian").hessian.values
    spoil(project, 1e5)
    project.write("train", rows)
    project.refresh()
    after = project.results.open("hessian").hessian.values
    scale = np.sqrt(np.abs(np.outer(np.diag(before), np.diag(before))))
    assert (np.abs(after - before) / scale).max() <= 1e-9


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("ekfac", 10),
        ("ekfac", 1e8),
        ("ekfac", 1e-9),
        ("kfac", 1e8),
        pytest.param("kfac", 10, marks=pytest.mark.campaign),
        pytest.param("kfac", 1e-9, marks=pytest.mark.campaign),
    ],
)
def test_kronecker_sums_of_a_repaired_outlier(pinned, method, factor):
    pinned.settings = pinned.settings | {"methods": {method: {}}}
    pinned.write_settings()
    pinned.refresh()
    good, name = pinned.rows["train"], f"{method}/curvature"
    before = pinned.results[method].influences.load()
    sums = pinned.results.open(name).load()
    spoil(pinned, factor, ("height", "width", "depth"))
    pinned.write("train", good)
    update = pinned.refresh()[name]
    assert update.info["rows_summed"] == (40 if factor == 1e8 else 2)
    after = pinned.results.open(name).load()
    for each in (each for each in sums if each.endswith("_sum")):
        assert_close(after[each], sums[each].values, 1e-9)
    assert_close(pinned.results[method].influences, before.values, 1e-8)


def test_dense_blocks_of_a_repaired_outlier(tmp_path):
    model = """\
import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x * self.scale)


def build():
    return Scaled()
"""
    project = Project(
        tmp_path, model=model, methods={"direct": None, "cg": None, "kfac": {}}, damping=DAMPING
    )
    project.settings = project.settings | {"perturbation": None}
    project.write_settings(model={"refit": "pinned", "loss": "mse"})
    for split in ("train", "test"):
        project.write(split, [[*row[:4], row[4] + 0.25] for row in project.rows[split]])
    project.refresh()
    good, before = project.rows["train"], project.results.open("kfac/curvature").load()
    assert any(name.endswith("dense_sum") for name in before)
    spoil(project, 1e8)
    project.write("train", good)
    project.refresh()
    after = project.results.open("kfac/curvature").load()
    for each in (each for each in before if each.endswith("_sum")):
        assert_close(after[each], before[each].values, 1e-12)


def test_in_single_precision_a_repaired_outlier_costs_single_precision(tmp_path):
    project = regression(tmp_path, compute={"dtype": "float32"})
    good = project.rows["train"]
    spoil(project, 1e4)
    project.write("train", good)
    assert project.refresh()["hessian"].info["rows_differentiated"] == 40
    assert_close(in_file_order(project), wanted(project), 2e-5)
    project.edit("train", 3, depth=0.1)
    assert project.refresh()["hessian"].info["rows_differentiated"] == 2
    assert_close(in_file_order(project), wanted(project), 2e-5)


def test_random_products_find_what_a_bound_has_overlooked(pinned, monkeypatch):
    monkeypatch.setattr(Digits, "after", lambda *_: 1e-16)
    good = pinned.rows["train"]
    spoil(pinned, 1e8)
    pinned.write("train", good)
    updates, said = reports(pinned)
    assert updates["hessian"].info["rows_differentiated"] == 40
    assert any(line.startswith("hessian: a difference would be wrong by") for line in said)


@pytest.mark.parametrize("spectrum", [0, 6000])
def test_a_matrix_that_was_made_by_difference_is_made_anew_before_it_is_refused(
    pinned, monkeypatch, spectrum
):
    """Also where no spectrum is computed, so that the factorisation is the first to notice."""
    good = pinned.rows["train"]
    with monkeypatch.context() as blind:
        blind.setattr(Digits, "after", lambda *_: 1e-16)
        blind.setattr(Digits, "measured", lambda *_: 0.0)
        blind.setattr(matrices, "LARGEST_SPECTRUM", spectrum)
        blind.setattr(torch, "from_numpy", _shifted(torch.from_numpy, -3 * DAMPING))
        pinned.edit("train", 3, depth=0.1)
        pinned.refresh()
    assert_close(in_file_order(pinned), wanted(pinned), 1e-9)
    pinned.write("train", good)
    assert pinned.refresh()["hessian"].info["rows_differentiated"] == 2


def _shifted(original, by):
    """Spoils the stored matrix as it is read for a difference (and for nothing else)."""

    def read(values):
        tensor = original(values)
        if tensor.ndim == 2 and len(tensor) == 21 == tensor.shape[1] and not read.done:
            tensor, read.done = tensor.clone(), True
            tensor.diagonal().add_(by)
        return tensor

    read.done = False
    return read
