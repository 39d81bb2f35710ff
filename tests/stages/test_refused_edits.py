"""Bad input is refused with the place, what was seen and what would be right; results stay."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_project import MODEL, Project

from influence_dag.errors import (
    DataError,
    IndefiniteError,
    InfluenceDagError,
    ModelError,
    StudyError,
)


def without(project: Project, column: str) -> None:
    for split in ("train", "test"):
        lines = [line.split(",") for line in (project.root / f"{split}.csv").read_text().split()]
        keep = [at for at, name in enumerate(lines[0]) if name != column]
        text = "\n".join(",".join(line[at] for at in keep) for line in lines)
        (project.root / f"{split}.csv").write_text(text)


def without_rows(project: Project, split: str) -> None:
    project.write(split, [])


def another_column_in_the_test_file(project: Project) -> None:
    text = (project.root / "test.csv").read_text()
    (project.root / "test.csv").write_text(text.replace("depth", "length"))


DATA = {
    "missing id": (
        lambda project: project.edit("train", 4, id=""),
        ["train.csv", "line 6", "id"],
    ),
    "repeated id": (
        lambda project: project.edit("test", 4, id="test-01"),
        ["test.csv", "'test-01'", "line 3", "line 6"],
    ),
    "no id column": (
        lambda project: without(project, "id"),
        ["train.csv", "no id column 'id' (data.id)", "it has height, width, depth, label"],
    ),
    "no target column": (
        lambda project: without(project, "label"),
        ["train.csv", "no target column 'label' (data.target)"],
    ),
    "named column that is not there": (
        lambda project: project.write_settings(data={"features": {"columns": ["height", "dept"]}}),
        ["train.csv", "'dept'", "data.features.columns", "did you mean 'depth'?"],
    ),
    "columns that differ": (
        another_column_in_the_test_file,
        ["test.csv", "train.csv", "length", "depth"],
    ),
    "nan": (
        lambda project: project.edit("train", 2, width="nan"),
        ["train.csv", "line 4", "'train-02'", "'width'", "NaN"],
    ),
    "empty cell": (
        lambda project: project.edit("train", 2, width=""),
        ["train.csv", "line 4", "'train-02'", "'width'"],
    ),
    "infinite": (
        lambda project: project.edit("test", 9, depth="-inf"),
        ["test.csv", "line 11", "'test-09'", "'depth'", "-inf"],
    ),
    "text": (
        lambda project: project.edit("train", 39, height="tall"),
        ["train.csv", "line 41", "'height'", "'tall'", "expected a number"],
    ),
    "missing label": (
        lambda project: project.edit("train", 7, label="nan"),
        ["train.csv", "line 9", "target", "NaN"],
    ),
    "empty training split": (lambda project: without_rows(project, "train"), ["train.csv"]),
    "empty test split": (lambda project: without_rows(project, "test"), ["test.csv"]),
    "shape that does not hold the columns": (
        lambda project: project.write_settings(
            data={"features": {"shape": [2, 2], "dims": ["a", "b"]}}
        ),
        ["train.csv", "3", "[2, 2]", "4"],
    ),
    "no file": (
        lambda project: project.write_settings(data={"train": "trian.csv"}),
        ["data.train", "trian.csv", "did you mean 'train.csv'?"],
    ),
}


def with_head(size: int) -> str:
    return MODEL.replace("nn.Linear(4, 3)", f"nn.Linear(4, {size})")


MEAN_LOSS = f"""{MODEL}

def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""

NOISY = """\
from torch import nn


class Noise(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x)


def build():
    return nn.Sequential(nn.Linear(3, 4), Noise(), nn.Linear(4, 3))
"""


def averaging_loss(project: Project) -> None:
    project.write_model(MEAN_LOSS)
    project.write_settings(model={"loss": "tiny_model:loss"})


def checkpoint_of_another_shape(project: Project) -> None:
    state = {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4), "2.weight": torch.zeros(5, 4)}
    save_file(state, project.root / "other.safetensors")
    project.write_settings(damping=0.05, model={"fit": None, "checkpoint": "other.safetensors"})


MODELS = {
    "label out of range": (
        lambda project: project.edit("train", 12, label=3),
        ["train.csv", "'train-12'", "label 3", "3 outputs (labels 0 to 2)"],
    ),
    "test label out of range": (
        lambda project: project.edit("test", 8, label=-1),
        ["test.csv", "'test-08'", "label -1", "3 outputs (labels 0 to 2)"],
    ),
    "fractional label": (
        lambda project: project.edit("train", 12, label=0.5),
        ["train.csv", "'train-12'", "label 0.5", "whole numbers"],
    ),
    "model of another input size": (
        lambda project: project.write_model(MODEL.replace("nn.Linear(3, 4)", "nn.Linear(5, 4)")),
        ["the model fails on inputs float64 (2, 3)", "5x4"],
    ),
    "model of fewer classes": (
        lambda project: project.write_model(with_head(2)),
        ["'label': label 2", "2 outputs (labels 0 to 1)"],
    ),
    "loss that averages": (
        averaging_loss,
        ["the loss returns shape ()", "one value per sample"],
    ),
    "active dropout": (
        lambda project: project.write_model(NOISY),
        ["differs between two calls", "dropout"],
    ),
    "checkpoint of another shape": (
        checkpoint_of_another_shape,
        [
            "other.safetensors",
            "2.weight has shape (5, 4), the module's is (3, 4)",
            "2.bias is missing",
        ],
    ),
    "no checkpoint file": (
        lambda project: project.write_settings(
            damping=0.05, model={"fit": None, "checkpoint": "nowhere.safetensors"}
        ),
        ["nowhere.safetensors"],
    ),
}

STUDIES = {
    "unknown method": (
        lambda project: project.write_settings(methods={"drect": {}}),
        ["defs.yaml:", "methods.drect", "did you mean 'direct'?"],
    ),
    "misspelt option": (
        lambda project: project.write_settings(methods={"cg": {"rtoll": 1e-3}}),
        ["defs.yaml:", "methods.cg.rtoll", "did you mean 'rtol'?"],
    ),
    "misspelt option of the study": (
        lambda project: project.write_settings(methods={"cg": {"dampng": 0.1}}),
        ["defs.yaml:", "methods.cg.dampng", "did you mean 'damping', which stands beside"],
    ),
    "no such module": (
        lambda project: project.write_settings(model={"build": "tiny_modle:build"}),
        ["model.build", "no module 'tiny_modle'"],
    ),
    "no such callable": (
        lambda project: project.write_settings(model={"build": "tiny_model:bild"}),
        ["model.build", "has no 'bild'", "did you mean build?"],
    ),
    "module that does not import": (
        lambda project: project.write_model("import numpyy\n\n\ndef build(): ...\n"),
        ["model.build", "tiny_model", "'numpyy'"],
    ),
    "loss that does not import": (
        lambda project: project.write_settings(model={"loss": "tiny_model:los"}),
        ["model.loss", "has no 'los'"],
    ),
}


def assert_refused(finished_project, tmp_path, case, kind: type[Exception]) -> None:
    spoil, words = case
    project = finished_project.copy(tmp_path)
    before = project.data_versions()
    spoil(project)
    with pytest.raises(kind) as caught:
        project.materialize()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert (
        project.data_versions().items()
        >= {name: version for name, version in before.items() if name != "dataset"}.items()
    )
    influences = project.results["direct"].influences
    np.testing.assert_array_equal(influences, finished_project.results["direct"].influences)


@pytest.mark.parametrize("case", DATA.values(), ids=DATA)
def test_data(finished_project, tmp_path, case):
    assert_refused(finished_project, tmp_path, case, DataError)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_models(finished_project, tmp_path, case):
    assert_refused(finished_project, tmp_path, case, (DataError, ModelError))


@pytest.mark.parametrize("case", STUDIES.values(), ids=STUDIES)
def test_studies(finished_project, tmp_path, case):
    assert_refused(finished_project, tmp_path, case, StudyError)


def test_a_damping_that_leaves_the_system_indefinite(finished_project, tmp_path):
    """At a minimum of the penalised loss, H alone need not be positive."""
    project = finished_project.copy(tmp_path)
    project.write_settings(damping=0.0)
    before = project.data_versions()
    with pytest.raises(InfluenceDagError, match=r"damping 0; a damping of 0\.\d+ or more"):
        project.materialize()
    with pytest.raises(IndefiniteError) as caught:  # without the checks, by the method itself
        project.refresh()
    error = caught.value
    assert error.smallest_eigenvalue < 0 < error.suggested_damping
    assert f"the smallest eigenvalue of H is {error.smallest_eigenvalue:.3g}" in str(error)
    assert f"use damping >= {error.suggested_damping:.2g}" in str(error)
    assert project.data_versions()["direct/influences"] == before["direct/influences"]
    project.write_settings(damping=error.suggested_damping)
    project.refresh()


BINARY = """\
from torch import nn


def build():
    return nn.Linear(3, 1)


def margin(output, target):
    return output.flatten(1)[:, 0]
"""


def test_targets_that_were_free_under_a_measurement_are_looked_at_when_it_is_gone(tmp_path):
    """The loss takes them for probabilities: above 1 it is of no row."""
    methods, model = {"cg": None}, {"loss": "bce_with_logits", "measurement": "tiny_model:margin"}
    project = Project(tmp_path, model=BINARY, methods=methods, perturbation=None)
    project.write_settings(model=model)
    for split, rows in project.rows.items():
        project.write(split, [[*row[:4], int(row[4] > 0)] for row in rows])
    project.edit("test", 3, label=2)
    project.refresh()
    project.write_settings(model={"measurement": None})
    with pytest.raises(DataError, match=r"test.csv: row 'test-03'.* between 0 and 1"):
        project.refresh()
