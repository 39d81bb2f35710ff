"""Self-influences of rows that float32 barely has: their squares are beyond its range."""

import numpy as np
import pytest
from tiny_project import Project

MODEL = """\
from torch import nn


def build():
    return nn.Linear(3, 3, bias=False)
"""
SIZES = [1e-12, 1e-20, 1e-30]  # of the first rows' features, and so of their gradients
DAMPINGS = [0.05, 0.5]  # of which a Cholesky factor serves none
METHODS = {
    "direct": {},
    "cg": {"rtol": 1e-6, "rank": 9},
    "arnoldi": {"rank": 9},
    "nystroem": {"rank": 9},
    "lissa": {"rtol": 1e-6},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project(
        tmp_path_factory.mktemp("small"),
        model=MODEL,
        methods=METHODS,
        damping=DAMPINGS,
        perturbation=None,
        summary={"self_influence": True},
        compute={"dtype": "float32"},
    )
    for row, size in zip(project.rows["train"], SIZES, strict=False):
        row[1:4] = [size * x for x in row[1:4]]
    project.write("train")
    project.refresh()
    return project


@pytest.fixture(scope="module")
def gradients(project) -> np.ndarray:
    """Of a row of no size a softmax regression says a third of each class."""
    rows = [row[1:] for row in project.rows["train"][: len(SIZES)]]
    return np.array([np.outer(1 / 3 - np.eye(3)[y], x).ravel() for *x, y in rows])


@pytest.mark.parametrize("method", METHODS)
def test_squares_of_small_gradients_are_kept(project, gradients, method):
    H = project.results.open("hessian").hessian.values
    summary = project.results.open(f"{method}/summary").isel(train=slice(len(SIZES)))
    for k, damping in enumerate(DAMPINGS):
        x = np.linalg.solve(H + damping * np.eye(9), gradients.T).T
        at = summary.isel(damping=k)
        np.testing.assert_allclose(at.self_influence, (x * gradients).sum(1), rtol=1e-3)
        np.testing.assert_allclose(
            at.parameter_influence_norm, np.linalg.norm(x, axis=1), rtol=1e-3
        )
