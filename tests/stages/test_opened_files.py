"""Files that a study's code opens by itself count as its code, where they are named."""

import json

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.errors import StudyError

MODEL = """\
import json
from pathlib import Path

from torch import nn

FACTOR = json.loads((Path(__file__).parent / "factor.json").read_text())["factor"]


def build():
    return nn.Linear(3, 3)


def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none") * FACTOR
"""


@pytest.fixture
def reading(tmp_path) -> Project:
    project = Project(tmp_path, model=MODEL)
    write(project, 1.0)
    model = {"loss": "tiny_model:loss", "depends_on": ["factor.json"], "fit": {"tolerance": 1e-9}}
    project.write_settings(model=model, methods={"cg": None}, perturbation=None)
    project.refresh()
    return project


def write(project: Project, factor: float) -> None:
    (project.root / "factor.json").write_text(json.dumps({"factor": factor}))


def test_an_edit_of_a_named_file_is_an_edit_of_the_code(reading):
    """Also for what was read when the module was imported, in this very process."""
    before = reading.results["direct"].influences.values
    assert all(update.is_current for update in reading.refresh().values())
    write(reading, 7.0)
    updates = reading.refresh()
    assert not updates["model"].is_current
    after = reading.results["direct"].influences.values
    reading.remove_store()
    reading.refresh()
    np.testing.assert_array_equal(reading.results["direct"].influences.values, after)
    assert np.abs(after).max() > 2 * np.abs(before).max()
    write(reading, 1.0)
    reading.refresh()
    np.testing.assert_allclose(reading.results["direct"].influences.values, before, rtol=1e-9)


@pytest.mark.parametrize("name", ["nowhere.json", "assets"])
def test_what_is_no_file_is_told(reading, name):
    reading.write_settings(model={"depends_on": ["factor.json", name]})
    with pytest.raises(StudyError, match=rf"model\.depends_on: .*{name} is not a file"):
        reading.refresh()
