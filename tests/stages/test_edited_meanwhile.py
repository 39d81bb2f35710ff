"""What is edited while a stage is at work is never published under the key of what it was."""

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_project import Project

from influence_dag.errors import StudyError
from influence_dag.stages.graph import artifacts
from influence_dag.store.drafts import StoredDraft
from influence_dag.study.code import forget_outdated
from influence_dag.unchanged import ChangedError, note, watching

MODEL = """\
from torch import nn


def build():
    return nn.Linear(3, 3)


def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none") * {factor}
"""
LAZY = """\
from torch import nn


def build():
    return nn.Linear(3, 3)


def loss(output, target):
    from tiny_factor import FACTOR
    return nn.functional.cross_entropy(output, target, reduction="none") * FACTOR
"""
SETTINGS = {
    "model": {"loss": "tiny_model:loss", "fit": {"tolerance": 1e-9}},
    "methods": {"cg": None},
    "perturbation": None,
}


class Held:
    """The lock of an artifact, held as by another process; let go, with an edit, by who waits."""

    def __init__(self, project: Project, artifact: str, edit):
        at_once = artifact in ("model", "hessian")
        lock = project.store / artifact / (".refresh.lock" if at_once else ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor, self.edit = os.open(lock, os.O_RDWR | os.O_CREAT), edit
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        self.edits = 0

    def __call__(self, message: str) -> None:
        if "waiting" in message and not self.edits:
            self.edits += 1
            self.edit()
            os.close(self.descriptor)


def made(root: Path, source: str = MODEL.format(factor=1.0)) -> Project:
    project = Project(root, model=source)
    project.write_settings(**SETTINGS)
    return project


def influences(project: Project) -> np.ndarray:
    return project.results["direct"].influences.values


def from_nothing(project: Project) -> np.ndarray:
    project.remove_store()
    project.refresh()
    return influences(project)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> np.ndarray:
    project = made(tmp_path_factory.mktemp("undisturbed"))
    project.refresh()
    return influences(project)


@pytest.mark.parametrize(
    "artifact",
    [
        "hessian",
        "direct/influence_factors",
        pytest.param("model", marks=pytest.mark.campaign),
        pytest.param("gradients", marks=pytest.mark.campaign),
    ],
)
def test_code_that_is_edited_while_a_stage_waits_and_set_back(tmp_path, undisturbed, artifact):
    project = made(tmp_path)
    file = project.root / "tiny_model.py"
    held = Held(project, artifact, lambda: file.write_text(MODEL.format(factor=7.0)))
    project.refresh(held)
    assert held.edits == 1
    file.write_text(MODEL.format(factor=1.0))
    project.refresh()
    np.testing.assert_allclose(influences(project), undisturbed, rtol=1e-9)


def test_derivatives_by_code_that_is_edited_before_their_stage_and_set_back(tmp_path):
    """They are of factors of the old code and of rows that the new one differentiates."""
    project = made(tmp_path)
    project.write_settings(perturbation={"methods": ["direct"]})
    file = project.root / "tiny_model.py"
    held = Held(project, "direct/influences", lambda: file.write_text(MODEL.format(factor=7.0)))
    project.refresh(held)
    assert held.edits == 1
    file.write_text(MODEL.format(factor=1.0))
    project.refresh()
    found = project.results.perturbation("direct").values
    project.remove_store()
    project.refresh()
    wanted = project.results.perturbation("direct").values
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_module_that_a_function_imports_when_it_is_called(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    project = made(tmp_path, LAZY)
    file = project.root / "tiny_factor.py"
    file.write_text("FACTOR = 1.0\n")
    held = Held(project, "model", lambda: file.write_text("FACTOR = 7.0\n"))
    project.refresh(held)
    assert held.edits == 1
    file.write_text("FACTOR = 1.0\n")
    project.refresh()
    np.testing.assert_allclose(influences(project), from_nothing(project), rtol=1e-9)


def test_a_checkpoint_that_is_replaced_while_its_stage_waits(tmp_path):
    project = made(tmp_path)
    project.refresh()
    good = load_file(project.store / "model/current/model.safetensors")
    file = project.root / "theta.safetensors"
    save_file(good, file)
    project.write_settings(model={"fit": None, "checkpoint": file.name}, damping=0.05)
    project.remove_store()
    other = {name: 2 * value for name, value in good.items()}
    held = Held(project, "model", lambda: save_file(other, file))
    project.refresh(held)
    assert held.edits == 1
    stored = load_file(project.store / "model/current/model.safetensors")
    assert all((stored[name] == other[name]).all() for name in other)
    save_file(good, file)
    project.refresh()
    np.testing.assert_allclose(influences(project), from_nothing(project), rtol=1e-9)


def test_code_that_never_stays_is_told(tmp_path):
    project = made(tmp_path)
    file = project.root / "tiny_model.py"
    tick = "from pathlib import Path\nPath(__file__).write_text(Path(__file__).read_text() + '#')\n"
    file.write_text(MODEL.format(factor=1.0) + tick)
    with pytest.raises(StudyError, match=r"model\.build: .*changes while it is imported"):
        project.refresh()


def test_code_that_its_own_fit_edits_is_told_and_nothing_is_published(tmp_path):
    project = made(tmp_path)
    fit = (
        "\n\ndef fit(module, rows):\n    from pathlib import Path\n"
        "    file = Path(__file__)\n    file.write_text(file.read_text() + '#')\n"
    )
    (project.root / "tiny_model.py").write_text(MODEL.format(factor=1.0) + fit)
    project.write_settings(model={"fit": "tiny_model:fit"}, damping=0.05)
    with pytest.raises(StudyError, match=r"tiny/model: the code of tiny_model changed each of 3"):
        project.refresh()
    assert "model" not in project.results.artifacts


def test_a_watch_compares_when_noted_again_and_when_asked():
    content = ["a"]
    with watching() as watch:
        assert note("a file", lambda: content[0]) == "a"
        watch.check()
        content[0] = "b"
        with pytest.raises(ChangedError, match="a file changed"):
            note("a file", lambda: content[0])
        with pytest.raises(ChangedError, match="a file changed"):
            watch.check()
    note("a file", lambda: content[0])


def test_a_file_replaced_between_its_hash_and_its_import_is_imported_again(tmp_path, monkeypatch):
    project = made(tmp_path)
    file = project.root / "tiny_model.py"

    def slowly(module, root, held=[True]):  # noqa: B006
        forget_outdated(module, root)
        if held and module == "tiny_model":
            held.pop()
            file.write_text(MODEL.format(factor=7.0))

    monkeypatch.setattr("influence_dag.study.imported.forget_outdated", slowly)
    project.refresh()
    monkeypatch.undo()
    assert all(update.is_current for update in project.refresh().values())
    np.testing.assert_allclose(influences(project), from_nothing(project), rtol=1e-9)
    assert len(list(artifacts(project.bench().study))) > 5


def test_chunks_of_a_stage_whose_code_was_edited_are_not_taken_up_again(tmp_path, monkeypatch):
    """A function's own import brings in edited code after the stage was keyed: nobody can tell."""
    monkeypatch.syspath_prepend(str(tmp_path))
    project = made(tmp_path, LAZY)
    file = project.root / "tiny_factor.py"
    file.write_text("FACTOR = 1.0\n")
    project.refresh()
    project.edit("train", 3, height=2.5)
    bench, nodes = project.bench(), {}
    for node in artifacts(bench.study):
        nodes[node.name] = node
    for name in ("dataset", "model"):
        nodes[name].refresh(bench)

    write = StoredDraft.write
    edits = []

    def written(draft, *args):
        write(draft, *args)
        edits.append(file.write_text(f"FACTOR = {len(edits) + 2}.0\n"))

    monkeypatch.setattr(StoredDraft, "write", written)
    with pytest.raises(StudyError, match=r"tiny/gradients: the code of tiny_model changed each"):
        nodes["gradients"].refresh(bench)
    assert edits
    assert project.results.store.unfinished() == {}
