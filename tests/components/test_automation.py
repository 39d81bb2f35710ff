"""Schedules and conditions are there when a study asks for them; observing is cheap."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from influence_dag.components.assets import asset_key, study_definitions
from influence_dag.datasets.content import source_fingerprint
from influence_dag.errors import StudyError
from influence_dag.study.loading import load_study


def definitions(project, **refresh) -> dg.Definitions:
    project.write_settings(refresh=refresh)
    return study_definitions(load_study(project.folder))


def test_nothing_runs_by_itself_unless_asked_for(project):
    defs = definitions(project)
    assert not defs.schedules
    assert not defs.sensors
    graph = defs.resolve_asset_graph()
    assert not any(graph.get(key).automation_condition for key in graph.get_all_asset_keys())


def test_a_schedule_refreshes_everything(project):
    (schedule,) = definitions(project, schedule="0 3 * * *").schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.name, schedule.cron_schedule) == ("tiny_schedule", "0 3 * * *")
    assert schedule.job_name == "tiny_refresh"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_a_schedule_that_is_none_is_refused(project):
    project.write_settings(refresh={"schedule": "at three"})
    with pytest.raises(StudyError, match=r"refresh\.schedule: 'at three' is not a cron string"):
        load_study(project.folder)


def test_automation_looks_at_the_files_itself(project):
    defs = definitions(project, automation=True)
    (sensor,) = defs.sensors or ()
    assert isinstance(sensor, dg.AutomationConditionSensorDefinition)
    study = load_study(project.folder)
    watched = sensor.asset_selection.resolve(defs.resolve_asset_graph())
    assert {asset_key(study, "source"), asset_key(study, "report")} <= watched
    source = defs.resolve_asset_graph().get(asset_key(study, "source"))
    assert source.automation_condition is not None


def test_automation_follows_the_files(project):
    source, dataset = (asset_key(load_study(project.folder), n) for n in ("source", "dataset"))
    look = dg.define_asset_job("look", [source], executor_def=dg.in_process_executor)
    defs = dg.Definitions.merge(definitions(project, automation=True), dg.Definitions(jobs=[look]))
    with dg.DagsterInstance.ephemeral() as instance:

        def observe() -> None:
            assert defs.resolve_job_def("look").execute_in_process(instance=instance).success

        def requested(cursor) -> tuple:
            result = dg.evaluate_automation_conditions(defs, instance=instance, cursor=cursor)
            return result.cursor, result.get_num_requested(dataset)

        observe()
        assert defs.resolve_job_def("tiny_refresh").execute_in_process(instance=instance).success
        cursor, _ = requested(None)
        observe()
        cursor, count = requested(cursor)
        assert count == 0, "observed, and as it was"
        project.edit("train", 3, height=0.25)
        observe()
        _, count = requested(cursor)
        assert count == 1


@contextmanager
def reading_forbidden(file: Path):
    """The same file, with the same times, holding something else."""
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(b"x" * len(content))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    yield
    file.write_bytes(content)


def test_files_that_were_not_touched_are_not_read_again(project, tmp_path):
    data, root = load_study(project.folder).settings.data, project.root
    remembered = tmp_path / "hashes" / "source.json"
    long_ago = time.time() - 100
    for split in ("train", "test"):
        os.utime(root / f"{split}.csv", (long_ago, long_ago))
    plain = source_fingerprint(data, root)
    assert source_fingerprint(data, root, remembered=remembered) == plain
    with reading_forbidden(root / "train.csv"):
        assert source_fingerprint(data, root, remembered=remembered) == plain
        assert source_fingerprint(data, root) != plain
    project.edit("train", 3, height=0.25)
    edited = source_fingerprint(data, root, remembered=remembered)
    assert edited == source_fingerprint(data, root) != plain


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_time(project, tmp_path):
    data, root = load_study(project.folder).settings.data, project.root
    remembered = tmp_path / "source.json"
    project.edit("train", 3, height=0.25)
    plain = source_fingerprint(data, root, remembered=remembered)
    with reading_forbidden(root / "train.csv"):
        assert source_fingerprint(data, root, remembered=remembered) != plain
