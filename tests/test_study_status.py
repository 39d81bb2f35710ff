"""What would be computed and why, and what the command line says of it and of versions."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import influence_dag as idag
from influence_dag.__main__ import main
from influence_dag.errors import DataError, StudyError
from influence_dag.stages.graph import artifacts
from influence_dag.store.posix.locks import locked
from influence_dag.study.loading import load_study

PINNED = {"model": {"refit": "pinned"}, "curvature": {"refresh": "pinned"}}


def said(*arguments) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_finished_study_is_current(project):
    status = idag.status(project.folder)
    assert status.is_current
    assert [each.artifact for each in status.artifacts] == [
        node.name for node in artifacts(load_study(project.folder))
    ]
    influences = status["direct/influences"]
    assert (influences.version, influences.blocks_current, influences.why) == (1, 15, "current")


def test_what_is_current_is_told_without_torch(finished_project):
    """By the same plans: importing torch would be an error."""
    code = (
        "import sys; sys.modules['torch'] = None; from influence_dag.cli.main import main; main()"
    )
    asked = [sys.executable, "-c", code, "status", finished_project.folder, "--json"]
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    here = idag.status(finished_project.folder)
    assert told["is_current"]
    for line, each in zip(told["artifacts"], here.artifacts, strict=True):
        assert line["artifact"] == each.artifact
        assert (line["blocks_current"], line["blocks_outdated"]) == (each.blocks_current, 0)


def test_code_that_has_not_run_is_imported_to_tell_what_is_wrong_with_it(project):
    path = project.root / "tiny_model.py"
    path.write_text(f"{path.read_text()}\nraise RuntimeError('half written')\n")
    with pytest.raises(StudyError, match=r"model.build: .* ended in RuntimeError: half written"):
        idag.status(project.folder)


def test_an_edit_is_told_with_its_rows_and_what_follows_waits_for_a_refit(project):
    before = project.data_versions()
    project.edit("train", 11, height=3.0)
    status = idag.status(project.folder)
    dataset = status["dataset"]
    assert dataset.reasons == {"inputs changed": 2}
    assert dataset.why == "2 inputs changed, train: 1 changed"
    assert status["model"].why == "1 inputs changed"
    assert status["gradients"].why == status["cg/curvature"].why == "waits for model"
    assert status["direct/summary"].why == "waits for direct/influences"
    assert len(status.outdated) == len(status.artifacts)
    assert project.data_versions() == before, "nothing was written"


EDITS = {
    "new rows": lambda project: [
        project.write(split, [[f"{split}-new", 1, 2, 3, 0], *project.rows[split]])
        for split in ("train", "test")
    ],
    "removed rows": lambda project: project.write("train", project.rows["train"][2:]),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_at_a_pinned_model_all_blocks_are_told_before_anything_is_computed(project, edit):
    project.write_settings(**PINNED)
    edit(project)
    status = idag.status(project.folder)
    updates = project.refresh()
    for each in status.artifacts:
        update = updates[each.artifact]
        if each.artifact.endswith(("summary", "report")):
            assert each.waits_for is not None  # it reads numbers
            continue
        assert each.waits_for is None
        assert each.reasons == update.reasons, each.artifact
        assert each.blocks_outdated == update.blocks_computed, each.artifact
        assert each.blocks_current == update.blocks_reused, each.artifact


def test_what_it_announces_is_what_a_refresh_computes(project):
    project.write_settings(**PINNED)
    project.edit("train", 11, height=3.0)
    bench = project.bench()
    for node in artifacts(bench.study):
        announced = idag.status(project.folder)[node.name]
        update = node.refresh(bench)
        assert announced.waits_for is None
        assert announced.blocks_outdated == update.blocks_computed, node.name
        assert announced.reasons == update.reasons
        assert announced.is_current == update.is_current
    assert idag.status(project.folder).is_current


def test_damage_settings_and_missing_artifacts_have_names(project):
    chunk = project.store / "direct/influences/current/influences/c.1.2"
    chunk.unlink()
    assert idag.status(project.folder)["direct/influences"].reasons == {"damaged": 1}
    project.refresh()
    project.write_settings(methods={"identity": {}})
    status = idag.status(project.folder)
    assert status["identity/curvature"].reasons == {"not computed": 1}
    assert status["identity/curvature"].version is None
    assert status["report"].waits_for == "identity/influences"


def test_bad_files_are_told_as_a_refresh_would(project):
    path = project.root / "train.csv"
    path.write_text(path.read_text().replace("height", "hight", 1))
    with pytest.raises(DataError, match="hight"):
        idag.status(project.folder)


def test_the_command_line_tells_status_versions_and_differences(project):
    project.write_settings(**PINNED)
    project.edit("train", 11, height=3.0)
    table = said("status", project.folder)
    assert "2 inputs changed, train: 1 changed" in table
    assert table.splitlines()[0].split() == ["artifact", "version", "current", "status"]
    project.refresh()
    assert "waits" not in said("status", project.folder)
    listed = said("versions", project.store, "direct/influences").splitlines()
    assert listed[0].split() == ["version", "data_version", "test_rows", "train_rows"]
    assert [line.split()[0] for line in listed[1:]] == ["1", "2"]
    assert listed[2].split()[2:] == ["10", "40", "current"]
    difference = said("diff", project.store, "direct/influences")
    assert "direct/influences: version 1 → 2" in difference
    assert "influences: 3 of 15 chunks differ" in difference
    assert "train-11: " in difference
    removed = said("gc", project.folder, "--keep", 1).splitlines()
    assert "direct/influences/versions/000001" in removed
    assert len(said("versions", project.store, "direct/influences").splitlines()) == 2
    refused = CliRunner().invoke(main, ["diff", str(project.store), "direct/influences"])
    assert refused.exit_code == 1
    assert "two are needed to compare" in refused.output


def test_gc_waits_for_a_writer_as_long_as_the_study_says(project):
    project.write_settings(store={"lock_timeout": 0.2})
    with locked(project.store / "dataset/.lock", timeout=0):
        refused = CliRunner().invoke(main, ["gc", str(project.folder)])
    assert refused.exit_code == 1
    assert "waiting for process" in refused.output
    assert "waited 0.2 s" in refused.output
