"""Killed, terminated, cancelled, or out of space during any artifact of a study: nothing is lost."""

import json
import random
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import study_faults
import xarray as xr
from project_copy import ROOT
from study_faults import Launcher, Moment
from tiny_project import Project

from influence_dag.stages.base import Update
from influence_dag.store.journal import Journal

PER_BLOCK = ("dataset", "gradients", "influence_factors", "influences", "perturbation_influences")
HISTORY = {"niter", "residual", "converged"}  # of an iterative solve: from where it started
CANCELLED = "cancelled"
KINDS = [signal.SIGKILL, signal.SIGTERM, CANCELLED]
TINY_BLOCKS = {"block_bytes": 800}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A study whose every artifact is outdated, what it holds, and what a refresh would make."""

    project: Project
    before: dict[str, Arrays]
    after: dict[str, Arrays]
    updates: dict[str, Update]
    changes: dict[str, int]  # of the store, by artifact, in an undisturbed refresh


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def setting(finished_project, launcher, tmp_path_factory) -> Setting:
    """A row was edited and the model is fitted again: all of the study's numbers will be others."""
    folder = tmp_path_factory.mktemp("faults")
    project = finished_project.copy(folder / "outdated")
    project.write_settings(compute=TINY_BLOCKS)
    project.edit("train", 3, height=2.5)
    counted = project.copy(folder / "counted")
    output = folder / "changes.json"
    assert launcher.run(
        study_faults.count_changes, folder / "log", str(counted.folder), str(output)
    ) == 0, (folder / "log").read_text()
    scratch = project.copy(folder / "scratch")
    scratch.remove_store()
    scratch.refresh()
    updates = project.copy(folder / "undisturbed").refresh()
    changes = json.loads(output.read_text())
    return Setting(project, stored(project), stored(scratch), updates, changes)


def stored(project: Project) -> dict[str, Arrays]:
    """Everything in `current`, read with plain xarray."""
    found = {}
    for name in project.results.artifacts:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = xr.open_zarr(project.store / name / "current").load()
        found[name] = {
            str(key): array.values for key, array in dataset.data_vars.items() if key not in HISTORY
        }
    return found


def moments(setting: Setting, rng: random.Random, count: int) -> list[Moment]:
    """Random ones, spread over all artifacts; every other one falls between two changes."""
    names = list(setting.changes)
    rng.shuffle(names)
    chosen = (names * (count // len(names) + 1))[:count]
    return [
        Moment(name, rng.randint(1, setting.changes[name]), rng.choice([0.0, rng.uniform(0, 0.05)]))
        for name in chosen
    ]


def disturb(launcher: Launcher, project: Project, kind, moment: Moment) -> tuple[int, str]:
    """Materialise a study and end it at a moment; the exit code and what was said."""
    output = project.root / "output"
    arguments = [str(project.folder), moment]
    if kind == CANCELLED:
        home = project.root / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        code = launcher.run(study_faults.cancelled_run, output, *arguments, str(home))
    else:
        code = launcher.run(study_faults.materialize, output, *arguments, int(kind))
    return code, output.read_text()


def equal(found: Arrays, wanted: Arrays) -> bool:
    return found.keys() == wanted.keys() and all(
        values.shape == wanted[name].shape
        and (
            np.allclose(values, wanted[name], rtol=1e-7, atol=1e-9, equal_nan=True)
            if values.dtype.kind == "f"
            else np.array_equal(values, wanted[name])
        )
        for name, values in found.items()
    )


def assert_old_or_new(project: Project, setting: Setting) -> None:
    """Every `current` is sound and is one of the two runs' results as a whole."""
    found = stored(project)
    assert found.keys() == setting.before.keys()
    for name, arrays in found.items():
        assert project.results.store.version(name).verify(checksums=True) == ()
        assert equal(arrays, setting.before[name]) or equal(arrays, setting.after[name]), name


def finished_blocks(project: Project) -> dict[str, int]:
    """What an interrupted run has left, by its journals."""
    left = {}
    for path in project.store.rglob("versions/.partial-*.journal"):
        done: set = set()
        journal = Journal(path)
        for entry in journal.recovered:
            name = entry.get("done", entry.get("dirty"))
            chunks = {(name, *index) for index in entry.get("chunks", ())}
            done = done | chunks if "done" in entry else done - chunks
        journal.close()
        left[path.parents[1].relative_to(project.store).as_posix()] = len(done)
    return left


def assert_resumes(project: Project, setting: Setting) -> int:
    """The next run computes what is missing and no more, and ends as if nothing had been.

    Returns how many blocks it took over.
    """
    left = finished_blocks(project)
    updates, taken = project.refresh(), 0
    for name, update in updates.items():
        if name.rpartition("/")[2] in PER_BLOCK and name in left:
            wanted = setting.updates[name].blocks_computed
            assert update.blocks_computed == wanted - left[name], name
            taken += left[name]
    found = stored(project)
    assert all(equal(found[name], wanted) for name, wanted in setting.after.items())
    names = {path.name for path in project.store.rglob("*")}
    assert not {name for name in names if "partial" in name or ".trash" in name}
    return taken


@pytest.mark.parametrize(
    "count", [pytest.param(42, marks=pytest.mark.campaign, id="42"), pytest.param(3, id="3")]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "name", kind))
def test_ended_at_any_moment_of_any_artifact_a_study_is_whole_and_resumes(
    setting, launcher, tmp_path, kind, count
):
    rng = random.Random(f"{kind} {count}")
    ended: dict[str, int] = {}
    taken = 0
    for number, moment in enumerate(moments(setting, rng, count)):
        project = setting.project.copy(tmp_path / str(number))
        code, said = disturb(launcher, project, kind, moment)
        if kind == CANCELLED:
            assert run_status(project) in (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS)
        else:
            assert code in ((-kind,) if kind == signal.SIGKILL else (130,)) or not code, said
        ended[moment.artifact] = ended.get(moment.artifact, 0) + 1
        assert_old_or_new(project, setting)
        taken += assert_resumes(project, setting)
    print(f"{kind}: {count} moments in {len(ended)} artifacts, {taken} blocks taken over")


def run_status(project: Project) -> dg.DagsterRunStatus:
    with dg.DagsterInstance.from_config(str(project.root / "dagster")) as instance:
        (run,) = instance.get_runs()
        return run.status
