"""What is computed from an opened store follows that store, and runs no code but its project's."""

import json
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from tiny_project import MODEL, Project

import influence_dag as idag
from influence_dag.errors import StoreError
from influence_dag.query.reopened import callables_of, settings_of
from influence_dag.stages.graph import artifacts
from influence_dag.store.arrays import crc32c
from influence_dag.store.manifests import sealed, unsealed

COMPUTED = {
    "lazy_perturbation": lambda study: study.lazy_perturbation("direct").compute(),
    "block_influences": lambda study: study.block_influences("direct", "layer").sum("block"),
    "parameter_influences": lambda study: study.parameter_influences("direct").compute(),
}


def numbers(study) -> dict[str, np.ndarray]:
    return {name: np.asarray(compute(study)) for name, compute in COMPUTED.items()}


def refusals(study) -> dict[str, str]:
    told = {}
    for name, compute in COMPUTED.items():
        with pytest.raises(StoreError) as caught:
            compute(study)
        told[name] = str(caught.value)
    return told


def assert_same(one: dict, other: dict) -> None:
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-9, atol=1e-12)


def test_a_copy_follows_its_own_store_whatever_becomes_of_the_original(project, tmp_path):
    before = numbers(idag.open_study(project.store))
    copy = project.copy(tmp_path / "copy")
    project.edit("train", 3, height=2.0)
    project.refresh()
    assert_same(before, numbers(idag.open_study(copy.store)))
    shutil.rmtree(project.store)
    assert_same(before, numbers(idag.open_study(copy.store)))


def test_settings_since_the_solves_are_those_that_are_computed_with(project):
    """Factors do not depend on them, and stay; what is derived from factors is another thing."""
    asked = {"methods": ["direct"], "wrt": "1"}
    project.write_settings(perturbation=asked, validation={"leave_one_out": {"rows": 2}})
    factors = project.refresh()["direct/influence_factors"]
    assert factors.is_current
    assert factors.version == 2
    study = project.results
    stored, computed = study.perturbation("direct"), study.lazy_perturbation("direct")
    assert computed.dims == stored.dims == ("test", "train", "1_0")
    np.testing.assert_allclose(computed, stored, rtol=1e-9)
    told = settings_of(study.store, "direct")["settings"]
    assert told["validation"]["leave_one_out"]["rows"] == 2
    assert all(update.is_current for update in project.refresh().values())


def test_a_store_that_was_moved_alone_asks_for_the_project_by_name(project, tmp_path_factory):
    before = numbers(idag.open_study(project.store))
    moved = tmp_path_factory.mktemp("elsewhere") / "renamed"
    shutil.copytree(project.store, moved, symlinks=True)
    alone = idag.open_study(moved)
    assert alone["direct"].influences.notnull().all()
    for told in refusals(alone).values():
        assert "lies in no project" in told
        assert "open_study(path, project=…)" in told
    assert_same(before, numbers(idag.open_study(moved, project=project.root)))


@pytest.mark.parametrize("module", ["evil_model", "shutil", "influence_dag.objective.modules"])
def test_a_store_names_no_code_from_outside_its_project(project, module):
    """Neither a file that lies in the store nor an installed package."""
    mark = project.root / "ran"
    source = f"open({str(mark)!r}, 'w')\n{MODEL}"
    (project.store / "evil_model.py").write_text(source)
    tamper(project, {"build": f"{module}:build"}, project=str(project.store))
    for told in refusals(idag.open_study(project.store)).values():
        assert f"model.build is {module}:build" in told
        assert "nothing is imported from elsewhere" in told
    assert not mark.exists()


def test_settings_that_an_older_version_took_are_told_as_what_they_are(project):
    tamper(project, {"fit": {"optimizer": "lbfgs", "batch_size": 8}})
    for told in refusals(idag.open_study(project.store)).values():
        assert f"{project.store}: it was computed with settings that are not taken here" in told
        assert "model.fit" in told
        assert "lbfgs takes all rows" in told


def tamper(study: Project, model: dict[str, Any], **others: str) -> None:
    """Rewrite what the factors say they were computed with, checksums and seals and all."""
    folder = (study.store / "direct/influence_factors/current").resolve()
    metadata = json.loads((folder / "zarr.json").read_text())
    known = json.loads(metadata["attributes"]["study_settings"]) | others
    known["settings"]["model"] |= model
    metadata["attributes"]["study_settings"] = json.dumps(known)
    rewrite(folder / "zarr.json", json.dumps(metadata))
    manifest = unsealed((folder / "manifest.json").read_bytes())
    stat, content = (folder / "zarr.json").stat(), (folder / "zarr.json").read_bytes()
    manifest["files"]["zarr.json"] = [stat.st_size, stat.st_mtime_ns, crc32c(content)]
    rewrite(folder / "manifest.json", sealed(manifest).decode())


def rewrite(path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def test_code_that_is_edited_before_a_slice_is_computed_is_not_run(project):
    """What was opened is of the code that it was held against."""
    stored = project.results.perturbation("direct").load()
    lazy = project.results.lazy_perturbation("direct")
    project.write_model(MODEL.replace("Tanh", "Sigmoid"))
    np.testing.assert_allclose(lazy, stored, rtol=1e-9)


def test_edited_code_is_not_run_under_the_old_numbers(project):
    mark = project.root / "ran"
    edited = MODEL.replace("nn.Tanh()", "nn.Softplus()")
    (project.root / "tiny_model.py").write_text(f"open({str(mark)!r}, 'w')\n{edited}")
    for told in refusals(idag.open_study(project.store)).values():
        assert "is not the code that the stored model was made with" in told
    assert not mark.exists()
    sys.modules.pop("tiny_model", None)


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("dataset", "(a refresh has not got there yet)"),
        ("model", "the stored model came after them"),
        ("gradients", "the stored model came after them"),
    ],
)
def test_a_refresh_that_has_not_got_there_yet_is_told(project, until, words):
    project.edit("train", 3, height=2.0)
    bench = project.bench()
    for node in artifacts(bench.study):
        node.refresh(bench)
        if node.name == until:
            break
    study = idag.open_study(project.store)
    with pytest.raises(StoreError) as caught:
        study.lazy_perturbation("direct")
    assert words in str(caught.value)
    project.refresh()
    study = idag.open_study(project.store)
    np.testing.assert_allclose(
        study.lazy_perturbation("direct"), study.perturbation("direct"), rtol=1e-9, atol=1e-12
    )


def test_pinned_numbers_serve_new_rows(project):
    project.write_settings(model={"refit": "pinned"}, curvature={"refresh": "pinned"})
    project.refresh()
    project.edit("train", 3, height=2.0)
    project.refresh()
    study = idag.open_study(project.store)
    np.testing.assert_allclose(
        study.lazy_perturbation("direct"), study.perturbation("direct"), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        study.block_influences("direct", "layer").sum("block"),
        study["direct"].influences,
        rtol=1e-9,
        atol=1e-12,
    )


def test_a_named_project_is_trusted_with_installed_code(tmp_path):
    project = Project(tmp_path, methods={"cg": None}, perturbation=None)
    project.write_settings(model={"loss": "influence_dag.losses.named:cross_entropy"})
    project.refresh()
    with pytest.raises(StoreError, match=r"model\.loss is influence_dag\.losses\.named:cross"):
        idag.open_study(project.store).parameter_influences("direct")
    named = idag.open_study(project.store, project=project.root)
    assert named.parameter_influences("direct").notnull().all()


def test_every_callable_of_the_model_is_looked_at(project):
    own = {"loss": "tiny_model:loss", "measurement": "tiny_model:margin"}
    settings = project.bench().settings
    model = settings.model.model_copy(update=own)
    assert callables_of(settings.model_copy(update={"model": model})) == {
        "model.build": "tiny_model:build",
        "model.loss": "tiny_model:loss",
        "model.measurement": "tiny_model:margin",
    }
