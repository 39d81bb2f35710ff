"""Files that a study's code opens by itself count as its code, where they are named."""

import json
import sys

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.errors import StudyError
from influence_dag.stages.graph import artifacts
from influence_dag.stages.updates import Update

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


def refreshed(project: Project, name: str) -> Update:
    return {node.name: node for node in artifacts(project.bench().study)}[name].refresh(
        project.bench()
    )


def fitted(project: Project) -> Update:
    refreshed(project, "dataset")
    return refreshed(project, "model")


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


PATH = 'Path(__file__).parent / "factor.json"'
AT_IMPORT = MODEL
IN_BUILD = MODEL.replace(f"json.loads(({PATH}).read_text())", '{"factor": 1.0}').replace(
    "    return nn.Linear", f"    ({PATH}).read_bytes()\n    return nn.Linear"
)
IN_FIT = f"""\
from pathlib import Path

from torch import nn


def build():
    return nn.Linear(3, 3)


def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")


def fit(module, rows):
    open({PATH}).close()
"""
BY_NAME = """\
import importlib

from torch import nn

scale = importlib.import_module("_".join(("scale", "of", "loss")))


def build():
    return nn.Linear(3, 3)


def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none") * scale.FACTOR
"""


@pytest.mark.parametrize(
    ("source", "where", "file"),
    [
        (AT_IMPORT, "model.*: importing tiny_model", "factor.json"),
        (IN_BUILD, "model.build: tiny_model:build", "factor.json"),
        (IN_FIT, "model.fit: tiny_model:fit", "factor.json"),
        (BY_NAME, "model.*: importing tiny_model", "scale_of_loss.py"),
    ],
    ids=["at import", "in build", "in fit", "a module by name"],
)
def test_what_is_not_named_is_refused(tmp_path, source, where, file):
    """No key would know of an edit, and what was stored before it would be served as current."""
    project = Project(tmp_path, model=source)
    write(project, 1.0)
    (project.root / "scale_of_loss.py").write_text("FACTOR = 1.0\n")
    fit = "tiny_model:fit" if "def fit" in source else project.settings["model"]["fit"]
    project.settings["model"] = {"build": "tiny_model:build", "loss": "tiny_model:loss", "fit": fit}
    project.write_settings()
    with pytest.raises(StudyError, match=rf"{where} opens .*{file}, .*in model\.depends_on"):
        project.refresh()
    sys.modules.pop("scale_of_loss", None)


LOOKED = """\
import importlib.metadata
import sys
import types
from contextlib import suppress

from torch import nn

sys.modules["tiny_made_up"] = types.ModuleType("tiny_made_up")
sys.modules["tiny_made_up"].__file__ = "tiny_made_up.py"
with suppress(OSError):
    open("nowhere.txt")

importlib.metadata.entry_points()


def build():
    importlib.metadata.entry_points()
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
"""


def test_what_python_looks_for_in_a_project_is_no_file_of_its_code(tmp_path, monkeypatch):
    """What an editable install left there, files of modules without one, what there is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_made_up.py").touch()
    project = Project(tmp_path, model=LOOKED, methods={"cg": None}, perturbation=None)
    about = project.root / "tiny.egg-info"
    about.mkdir()
    (about / "PKG-INFO").write_text("Name: tiny\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[x]\na = b:c\n")
    assert not fitted(project).is_current
    del sys.modules["tiny_made_up"]


def test_a_module_by_name_that_is_named_is_imported_again_when_it_is_edited(tmp_path):
    project = Project(tmp_path, model=BY_NAME)
    scale = project.root / "scale_of_loss.py"
    scale.write_text("FACTOR = 1.0\n")
    model = {"loss": "tiny_model:loss", "depends_on": [scale.name], "fit": {"tolerance": 1e-9}}
    project.write_settings(model=model, methods={"cg": None}, perturbation=None)
    assert not fitted(project).is_current
    assert fitted(project).is_current
    before = project.results.store.version("model").attrs["info"]["mean_loss"]
    scale.write_text("FACTOR = 7.0\n")
    assert not fitted(project).is_current
    assert project.results.store.version("model").attrs["info"]["mean_loss"] > 2 * before


ROWS = """\
from pathlib import Path

import pandas

TABLE = pandas.read_csv(Path(__file__).parent / "train.csv")


def rows():
    return TABLE
"""


def test_a_table_that_is_read_when_its_module_is_imported_is_read_again(tmp_path):
    """A process that lives on, such as Dagster's, imports a module once."""
    project = Project(tmp_path)
    (project.root / "tiny_rows.py").write_text(ROWS)
    project.write_settings(data={"train": "tiny_rows:rows"})
    refreshed(project, "dataset")
    project.edit("train", 3, height=77.0)
    assert not refreshed(project, "dataset").is_current
    assert 77.0 in project.results.store.version("dataset").read("train_x")
    sys.modules.pop("tiny_rows", None)
