"""The whole job in this process: progress, records, checks, the command line, a kill and after."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_project import Project

import influence_dag as idag
from influence_dag.__main__ import main
from influence_dag.components.keys import asset_key
from influence_dag.components.standing import left_by, stands
from influence_dag.errors import InfluenceDagError
from influence_dag.query import plots
from influence_dag.query.text import describe
from influence_dag.stages import checks
from influence_dag.stages.graph import artifacts
from influence_dag.study.loading import load_study

ROOT = Path(__file__).parents[1]


def test_every_artifact_of_the_graph_is_stored(finished_project):
    study = load_study(finished_project.folder)
    names = {node.name for node in artifacts(study)}
    assert set(finished_project.results.artifacts) == names


def test_a_second_run_says_that_it_computes_nothing(project, capsys):
    before = project.data_versions()
    study = project.materialize()
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if not line.startswith("warning: ")]  # checks that only warn
    assert sorted(line.partition(":")[0] for line in said) == sorted(study.artifacts)
    assert all(": current (version 1, " in line for line in said)
    assert project.data_versions() == before


def test_progress_is_shown_when_asked_for(project, capsys):
    idag.materialize(project.folder, progress=True)
    shown = capsys.readouterr().err
    assert "step/s" in shown or "s/step" in shown
    assert "100%" in shown


def test_runs_are_recorded_where_dagster_home_is(project, tmp_path, monkeypatch, capsys):
    home = tmp_path / "dagster-home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    project.write_settings(methods={"cg": None}, perturbation=None)
    project.materialize()
    first = _recorded(["tiny", "direct", "influences"])
    assert first.metadata["blocks_computed"].value == 0
    assert "data:image/png;base64," in first.metadata["histogram"].value
    page = _recorded(["tiny", "report"]).metadata
    assert page["verdict"].value.startswith("### Trust these ranks with care")
    assert f"`influence-dag report {project.store}`" in page["verdict"].value
    assert all(f"- **{each}**: " in page["measured"].value for each in ("minimum", "residual"))
    assert page["strength"].value.startswith("- **direct**: ")
    project.write_settings(model={"minimum": "ignore"})  # what checks say, and no number
    project.materialize()
    again = _recorded(["tiny", "direct", "influences"])
    assert again.metadata["histogram"] == first.metadata["histogram"], "drawn once"
    assert len(dg.DagsterInstance.get().get_runs()) == 2
    _a_run_that_stands_is_not_made_again(project, home, capsys)


def _a_run_that_stands_is_not_made_again(project: Project, home: Path, capsys) -> None:
    """Until the files, a result or what the UI shows of an asset are of something else."""
    study, instance = load_study(project.folder), dg.DagsterInstance.get()
    last = instance.get_runs(limit=1)[0].run_id
    capsys.readouterr()
    assert project.materialize()["direct"].sizes["train"] == 40
    assert (
        f"tiny: all is current, and the checks of run {last[:8]} stand" in capsys.readouterr().err
    )
    assert len(instance.get_runs()) == 2
    file = project.root / "train.csv"
    before = file.read_bytes()
    file.write_bytes(before + b"\n")  # the same rows in another file, which is to be observed
    assert not stands(study, home)
    file.unlink()
    assert left_by(study) == {}, "as of a run whose files are gone when it ends"
    file.write_bytes(before)
    assert stands(study, home)
    versions = project.data_versions()
    asked = CliRunner().invoke(main, ["materialize", str(project.folder), "--quiet", "--again"])
    assert asked.exit_code == 0, asked.output
    latest, *earlier = instance.get_runs()
    assert len(earlier) == 2
    assert latest.status == dg.DagsterRunStatus.SUCCESS
    assert stands(study, home), "the one that was asked for"
    assert project.data_versions() == versions
    other = dg.AssetCheckEvaluation(asset_key(study, "model"), "at_a_minimum", True, {})
    instance.report_runless_asset_event(other)
    assert not stands(study, home)


def test_a_shard_that_makes_no_run_makes_none_again(project):
    words = ["materialize", str(project.folder), "--shard", "2/2", "--again"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "--again is for the shard that makes the run, 1/n" in refused.output


def test_the_command_line_records_where_make_ui_looks(project, monkeypatch):
    """`make` sets the folder up before it starts the UI, with itself in the environment."""
    project.write_settings(methods={"cg": None}, perturbation=None)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    shutil.copy(ROOT / "dagster.yaml", project.root)
    make = ["make", "--silent", "-C", project.root, "-f", ROOT / "Makefile"]
    where = subprocess.run(
        [*make, "--eval", "home: ; @echo $$DAGSTER_HOME", "home"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run([*make, f"{where}/dagster.yaml"], check=True)
    done = CliRunner().invoke(main, ["materialize", str(project.folder), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "history" not in done.output
    with dg.DagsterInstance.from_config(where) as instance:
        (run,) = instance.get_runs()
        assert (run.job_name, run.status) == ("tiny_refresh", dg.DagsterRunStatus.SUCCESS)
        assert instance.get_latest_materialization_event(dg.AssetKey(["tiny", "report"]))


def test_the_command_line_says_why_a_run_is_not_recorded(project, monkeypatch):
    project.write_settings(methods={"cg": None}, perturbation=None)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (project.root / ".dagster").mkdir()  # of something else
    done = CliRunner().invoke(main, ["materialize", str(project.folder), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "DAGSTER_HOME is not set, and " in done.output
    assert f"{project.root / '.dagster'} has no dagster.yaml" in done.output
    assert not list((project.root / ".dagster").iterdir())


def _recorded(key: list[str]) -> dg.AssetMaterialization:
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(key))
        assert event is not None
        return event.asset_materialization


def test_without_dagster_home_nothing_is_recorded(project, monkeypatch, tmp_path):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    project.materialize()
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_chunk_is_seen_by_a_check_and_computed_again(project):
    chunk = project.store / "direct/influences/current/influences/c.1.2"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    expected = project.results["cg"].influences.values
    project.materialize()
    np.testing.assert_allclose(project.results["direct"].influences, expected, rtol=1e-6)


# The command line


def test_the_command_line_shows_what_is_stored(project):
    done = CliRunner().invoke(main, ["materialize", str(project.folder), "--quiet", "--show"])
    assert done.exit_code == 0, done.output
    for words in ("40 train", "helped by", "harmed by", "idag.open_study", "xarray.open_zarr"):
        assert words in done.output
    shown = CliRunner().invoke(main, ["show", str(project.store)])
    assert shown.output.strip() in done.output


def test_what_it_says_is_to_be_typed_next_works(finished_project):
    typed_next(describe(finished_project.results))


def typed_next(said: str) -> None:
    """The lines of Python in what is said, run as a reader would."""
    lines = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    code = [line for line in lines if line.startswith(("import ", "study ", "study[", "study."))]
    assert len(code) >= 4
    exec("\n".join(code), {})


def test_the_strongest_rows_it_names_are_those(finished_project):
    row = finished_project.results["direct"].influences.isel(test=0).compute()
    best, worst = row.idag.top_k(1), row.idag.bottom_k(1)
    said = describe(finished_project.results)
    assert (
        f"helped by  {best.train.item(0)} ({best.train_label.item(0)}) {best.item(0):+.3g}" in said
    )
    assert f"harmed by  {worst.train.item(0)} " in said


def test_a_single_test_row_is_told_once(finished_project, tmp_path):
    project = finished_project.copy(tmp_path)
    project.write("test", project.rows["test"][:1])
    project.refresh()
    assert describe(project.results).count("helped by") == 1


@pytest.mark.parametrize("command", ["materialize", "show"])
def test_errors_on_the_command_line_are_one_line_and_no_traceback(tmp_path, command):
    done = CliRunner().invoke(main, [command, str(tmp_path)])
    assert done.exit_code == 1
    assert str(tmp_path) in done.output
    assert "Traceback" not in done.output


NASTY = ('$_{%d$"\u202e', "_%d{}", "<b>%d</b>", "**%d**\x1b[2J")


def metadata_in(monkeypatch, home) -> Callable[[str], Any]:
    """The metadata of what runs have made: recorded in a folder, so that pictures are drawn."""
    home.mkdir()
    (home / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(home))

    def metadata(artifact: str) -> Any:
        key = dg.AssetKey(["tiny", *artifact.split("/")])
        event = dg.DagsterInstance.get().get_latest_materialization_event(key)
        assert event
        assert event.asset_materialization
        return event.asset_materialization.metadata

    return metadata


def test_ids_and_columns_of_any_characters_are_stored_shown_and_drawn(tmp_path, monkeypatch):
    metadata = metadata_in(monkeypatch, tmp_path / "home")
    project = Project(tmp_path / "project", methods={"cg": None})
    ids = {}
    for split, rows in project.rows.items():
        for k, row in enumerate(rows):
            row[0] = NASTY[k % len(NASTY)] % k
        project.write(split)
        ids[split] = [row[0] for row in rows]
        file = project.root / f"{split}.csv"
        file.write_text(file.read_text().replace("height,width", "$h_{,{w}_<i>", 1))
    results = project.materialize()
    assert results["direct"].influences.test.values.tolist() == ids["test"]
    assert results.perturbation("direct").feature.values.tolist() == ["$h_{", "{w}_<i>", "depth"]
    drawn = metadata("direct/perturbation_influences")["example"]
    assert "data:image/png;base64," in drawn.value
    table = metadata("direct/summary")["strongest"]
    assert table.records[0].data["test"] == r'$_{0$"\u202e (0)'
    said = describe(results)
    assert r'$_{0$"\u202e' in said
    assert all(line.isprintable() for line in said.splitlines()), "or the cursor moves"
    typed_next(said)


def test_a_picture_that_cannot_be_drawn_fails_no_run(finished_project, tmp_path, monkeypatch):
    metadata = metadata_in(monkeypatch, tmp_path / "home")
    project = finished_project.copy(tmp_path / "project")
    project.write_settings(methods={"cg": None}, perturbation=None)

    def broken(*args, **settings):
        raise ValueError("no ink")

    monkeypatch.setattr(plots, "histogram", broken)
    project.materialize()
    told = metadata("direct/influences")
    assert told["picture"].value == "could not be drawn: ValueError: no ink"
    assert told["version"].value == 1


def test_a_failed_check_names_itself_and_stops_what_follows(project):
    before = project.data_versions()
    project.write_settings(damping=1.0, model={"fit": {"max_steps": 1}})
    with pytest.raises(InfluenceDagError, match=r"tiny/model: at_a_minimum: .*train longer"):
        project.materialize()
    after = project.data_versions()
    assert {name for name in after if after[name] != before[name]} == {"model"}


def test_a_check_that_only_warns_is_printed_and_fails_nothing(project, monkeypatch, capsys):
    monkeypatch.setattr(checks, "REFITS", 1.1)  # a correlation that nothing reaches
    project.write_settings(validation={"leave_one_out": {"rows": 2}})
    assert "validation/leave_one_out" in project.materialize().artifacts
    said = capsys.readouterr().err
    assert "warning: tiny/validation/leave_one_out: predicts_refits: Pearson" in said
