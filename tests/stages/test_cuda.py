"""A study on a CUDA device has the numbers of the processor; skipped where there is none.

`tests/simulated_cuda` runs this on a device that is made of the processor.
"""

import numpy as np
import pytest
import torch
from tiny_answers import assert_close
from tiny_project import MODEL, Project

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

METHODS = {"direct": {}, "cg": {"rtol": 1e-10, "rank": 8}, "ekfac": {}, "kfac": {}}
FORMS = [{}, {"reduce": {"over": "feature", "by": "l2"}}, {"pairs": "top-5"}]
CODE = """

class Cooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sharpness", torch.tensor([0.5], dtype=torch.float64))

    def forward(self, output, target):
        output = output * self.sharpness
        return nn.functional.cross_entropy(output, target, reduction="none")


loss = Cooled()


def draw(output, target, generator):
    return torch.multinomial((0.5 * output).softmax(-1), 1, generator=generator).squeeze(-1)


def fit(module, rows):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(rows.x), rows.y).backward()
        optimizer.step()
"""
PICTURES = """\
import torch
from torch import nn


class Picture(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.square(), x.sin()], 1).reshape(-1, 1, 3, 3)


def build():
    return nn.Sequential(
        *(Picture(), nn.Conv2d(1, 3, 2, padding=1), nn.Tanh(), nn.BatchNorm2d(3)),
        *(nn.Conv2d(3, 3, 2, groups=3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)),
    )
"""
SEQUENCES = """\
import torch
from torch import nn


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.outer = nn.Linear(1, 4), nn.Linear(4, 3)
        self.inner = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.register_buffer("places", torch.arange(3.0)[:, None] / 3)

    def forward(self, x):
        return self.outer(self.inner(self.embed(x[..., None]) + self.places).mean(1))


def build():
    return Attends()
"""
TRAINED = {
    "damping": 0.5,
    "model": {
        "fit": {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 30, "batch_size": 16},
        "minimum": "ignore",
    },
    "methods": {"direct": {"on_indefinite": "absolute"}, "cg": None, "ekfac": {}, "kfac": {}},
}
STUDIES = {
    "the other methods, block by block": (
        MODEL,
        {
            "methods": {
                "direct": {"blocks": "layer", "curvature": "gauss_newton"},
                "cg": {"rtol": 1e-9, "rank": None, "preconditioner": "ekfac", "search": "shared"},
                "lissa": {"rtol": 1e-3},
                "arnoldi": {"rank": 8, "tol": 1e-9, "on_device": True},
                "nystroem": {"rank": 20},
                "ekfac": {"fisher": "sampled"},
                "kfac": {"fisher": "empirical"},
                "identity": {},
            },
            "damping": [0.1, 1.0],
            "summary": {"self_influence": True},
            "perturbation": {"methods": ["direct"], "reduce": {"over": "test", "by": "absmax"}},
        },
    ),
    "validated, in a precision and with columns of its own": (
        MODEL,
        {
            "methods": {"direct": {}, "cg": None, "ekfac": {}},
            "data": {"features": {"standardise": True}},
            "validation": {"leave_one_out": {"rows": 3}, "datamodels": {"count": 4}}
            | {"label_errors": {"folds": 2}},
            "compute": {"dtype": "float32"},
        },
    ),
    "code of one's own": (
        MODEL + CODE,
        {
            "model": {"fit": "tiny_model:fit", "loss": "tiny_model:loss", "minimum": "ignore"}
            | {"measurement": "tiny_model:loss"},
            "damping": "auto",
            "methods": {"direct": {"on_indefinite": "absolute"}, "cg": None}
            | {"kfac": {"fisher": "sampled", "distribution": "tiny_model:draw"}},
        },
    ),
    "pictures": (PICTURES, TRAINED),
    "sequences": (SEQUENCES, TRAINED),
}
# Of what is not one number for a study: bases, and what is left of solves to rounding.
MANY = ("eigenvectors", "basis", "vectors", "residual", "seconds", "places")


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    projects = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path_factory.mktemp(device)
        projects[device] = Project(
            folder, methods=METHODS, compute={"device": device, "dtype": "float64"}
        )
        projects[device].refresh()
    return projects


@pytest.mark.parametrize("method", METHODS)
def test_influences_are_those_of_the_processor(sides, method):
    mine, theirs = (sides[device].results[method].influences.values for device in ("cuda", "cpu"))
    assert_close(mine, theirs, 1e-8)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_perturbations_are_those_of_the_processor(sides, form):
    for project in sides.values():
        project.write_settings(perturbation={"reduce": None, "pairs": None, **form})
        project.refresh()
    mine, theirs = (sides[device].results.perturbation("direct") for device in ("cuda", "cpu"))
    assert_close(mine, theirs.values, 1e-8)


@pytest.mark.parametrize("study", STUDIES)
def test_every_array_of_a_study_is_that_of_the_processor(tmp_path, study):
    code, settings = STUDIES[study]
    mine, theirs = (_arrays(tmp_path / device, device, code, settings) for device in DEVICES)
    assert mine.keys() == theirs.keys()
    tolerance = 1e-4 if settings.get("compute") else 1e-7
    different = [name for name in mine if not _equal(mine[name], theirs[name], tolerance)]
    assert not different


def test_convolutions_are_in_float32_where_float32_is_asked_for(sides):
    sides["cuda"].bench().device  # noqa: B018
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


DEVICES = ("cuda", "cpu")


def _arrays(folder, device, code, settings):
    """Every array of numbers that the study stores, by artifact and name."""
    folder.mkdir()
    project = Project(folder, model=code)
    project.write_settings(**settings)
    project.write_settings(compute={"device": device})
    project.refresh()
    opened = {name: project.results.open(name) for name in project.results.artifacts}
    return {
        f"{name}: {variable}": values.values
        for name, dataset in opened.items()
        for variable, values in dataset.variables.items()
        if not any(word in variable for word in MANY) and values.dtype.kind in "fiub"
    }


def _equal(mine, theirs, tolerance):
    if mine.dtype.kind != "f":
        return np.array_equal(mine, theirs)
    there = np.isfinite(theirs)
    if mine.shape != theirs.shape or not np.array_equal(np.isfinite(mine), there):
        return False
    error = np.linalg.norm((mine - theirs)[there].astype(np.float64))
    return error <= tolerance * np.linalg.norm(theirs[there].astype(np.float64))
