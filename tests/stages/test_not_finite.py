"""No NaN leaves a stage without a word: rows and features are named, nothing is published."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_answers import assert_close, expected
from tiny_project import Project

from influence_dag.errors import ModelError
from influence_dag.stages import checks, dampings

POOLED = """\
from torch import nn


class Length(nn.Module):
    def forward(self, x):
        return x.square().sum(1, keepdim=True).sqrt()


def build():
    return nn.Sequential(Length(), nn.Linear(1, 3))
"""
ROOTED = """\
import torch
from torch import nn


class Rooted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.layer(x).abs().sqrt()


def build():
    return Rooted()
"""


def with_zeros(root, model: str, split: str = "train") -> Project:
    project = Project(root, model=model, methods={"cg": None}, damping=0.5)
    rows = [list(row) for row in project.rows[split]]
    rows[13][1:4] = [0.0, 0.0, 0.0]
    project.write(split, rows)
    return project


def test_a_perturbation_at_a_point_without_a_derivative_names_the_row(tmp_path):
    project = with_zeros(tmp_path, POOLED)
    with pytest.raises(ModelError) as caught:
        project.refresh()
    said = str(caught.value)
    assert "direct/perturbation_influences: the perturbation influences of training row" in said
    assert "'train-13' are not finite" in said
    assert "direct/perturbation_influences" not in project.results.artifacts
    assert project.results["direct"].influences.notnull().all()


def test_a_gradient_at_a_point_without_one_is_refused(tmp_path):
    project = with_zeros(tmp_path, ROOTED)
    with pytest.raises(ModelError, match=r"finite|nan"):
        project.refresh()
    assert not {"gradients", "hessian"} & set(project.results.artifacts)


def test_every_stage_looks_at_what_it_writes(project, monkeypatch):
    """Whatever a kernel does: here one that returns NaN for one pair."""
    from influence_dag import influence

    right = influence.influences

    def wrong(factors, gradients, *, out=None):
        values = right(factors, gradients, out=out)
        values[1, 2] = np.nan
        return values

    monkeypatch.setattr(influence, "influences", wrong)
    project.edit("test", 1, height=0.3)
    with pytest.raises(ModelError) as caught:
        project.refresh()
    assert str(caught.value).startswith(
        "direct/influences: influences is not finite at test 'test-01', train 'train-02'"
    )


def test_holes_of_either_axis_are_no_fault(project):
    project.write("train", project.rows["train"][1:])
    project.write("test", [row for k, row in enumerate(project.rows["test"]) if k != 6])
    project.refresh()
    assert_close(project.results["direct"].influences, expected(project, "influences"))
    assert_close(
        project.results.perturbation("direct"), expected(project, "perturbation_influences")
    )


BENT = """\
from torch import nn


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.layer(x).abs().pow(1.5)


def build():
    return Bent()
"""


def test_a_second_derivative_that_is_none_names_the_row(tmp_path):
    project = with_zeros(tmp_path, BENT)
    with pytest.raises(ModelError, match="train row 'train-13': the loss has no finite second"):
        project.refresh()
    assert not {"hessian", "direct/curvature"} & set(project.results.artifacts)


def test_a_row_that_comes_later_is_named_as_well(tmp_path):
    """Where the matrix is brought up to date by difference; what was stored stays."""
    project = Project(tmp_path, model=BENT, methods={"cg": None}, damping=5.0)
    project.write_settings(model={"refit": "pinned"})
    project.refresh()
    stored = project.results.versions("hessian")
    rows = [list(row) for row in project.rows["train"]]
    rows[7][1:4] = [0.0, 0.0, 0.0]
    project.write("train", rows)
    with pytest.raises(ModelError, match="train row 'train-07': the loss has no finite second"):
        project.refresh()
    assert len(project.results.versions("hessian")) == len(stored)


def test_checks_that_compare_refuse_what_is_no_number(project, monkeypatch):
    """It is smaller than no limit, and larger than none."""
    matrix = np.eye(300)
    matrix[0, 0] = np.nan
    stored = SimpleNamespace(read=lambda name: matrix)
    bench: Any = SimpleNamespace(require=lambda name: stored)
    assert not checks.symmetric(bench, "hessian").passed
    assert checks.matches_parts(project.bench(), "direct").passed
    read = dampings.at

    def damaged(version, name, *region):
        return np.array(np.nan) if name == "influences" else read(version, name, *region)

    monkeypatch.setattr(dampings, "at", damaged)
    assert not checks.matches_parts(project.bench(), "direct").passed
