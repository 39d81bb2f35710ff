"""Killed, terminated or cancelled in any artifact, a study is whole and the next run resumes."""

import json
import random
import re
import shutil
import signal
import warnings
from collections import Counter
from dataclasses import dataclass

import dagster as dg
import numpy as np
import pytest
import study_faults
import xarray as xr
from project_copy import ROOT
from study_faults import Launcher, Moment
from tiny_project import Project

from influence_dag.__main__ import INTERRUPTED
from influence_dag.stages.graph import artifacts
from influence_dag.stages.workbench import Workbench
from influence_dag.store.posix.journal import Journal
from influence_dag.study.loading import load_study

PER_BLOCK = ("dataset", "gradients", "influence_factors", "influences", "perturbation_influences")
HISTORY = {"niter", "residual", "converged"}  # of an iterative solve: from where it started
COMPUTED = r"(?:^| - )(\S+): version \d+, (\d+) blocks computed"  # said plainly, or logged
CANCELLED = "cancelled"
FEW = {signal.SIGKILL: 2, signal.SIGTERM: 1}  # artifacts, when it is not every one
KINDS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, CANCELLED: CANCELLED}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A study whose every artifact is outdated, what it holds, and what a refresh would make."""

    project: Project
    before: dict[str, Arrays]
    after: dict[str, Arrays]
    changes: dict[str, int]  # of the store, by artifact, in an undisturbed run and in its order
    blocks: dict[str, int]  # computed in it


@pytest.fixture(scope="module")
def setting(finished_project, launcher, tmp_path_factory) -> Setting:
    """With one method: every kind of artifact once."""
    project = finished_project.copy(tmp_path_factory.mktemp("faults") / "outdated")
    project.write_settings(methods={"cg": None})
    shutil.rmtree(project.store / "cg")
    project.refresh()
    return outdated(project, launcher)


@pytest.fixture(scope="module")
def thorough(finished_project, launcher, tmp_path_factory) -> Setting:
    """With both methods."""
    folder = tmp_path_factory.mktemp("faults of both methods")
    return outdated(finished_project.copy(folder / "outdated"), launcher)


def outdated(project: Project, launcher: Launcher) -> Setting:
    """A row was edited and the model is fitted again: all of the study's numbers will be others."""
    folder = project.root.parent
    project.write_settings(compute={"block_bytes": 2400})  # several blocks an artifact
    project.edit("train", 3, height=2.5)
    counted, counts = project.copy(folder / "counted"), folder / "counts.json"
    arguments = str(counted.folder), str(counts)
    code = launcher.run(study_faults.count_changes, folder / "log", *arguments)
    assert code == 0, (folder / "log").read_text()
    scratch = project.copy(folder / "scratch")
    scratch.remove_store()
    scratch.refresh()
    assert all_equal(stored(counted), stored(scratch))
    blocks = re.findall(COMPUTED, (folder / "log").read_text(), re.M)
    return Setting(
        project,
        stored(project),
        stored(scratch),
        changes=json.loads(counts.read_text()),
        blocks={name: int(computed) for name, computed in blocks},
    )


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


def moment(setting: Setting, artifact: str, rng: random.Random) -> Moment:
    """A random one; about half of them fall between two changes."""
    delay = rng.choice([0.0, rng.uniform(0, 0.05)])
    return Moment(artifact, rng.randint(1, setting.changes[artifact]), delay)


def disturb(launcher: Launcher, project: Project, kind, moment: Moment) -> tuple[int, str]:
    """Materialise a study and end it at a moment; the exit code and what was said."""
    output = project.root / "output"
    arguments = [str(project.folder), moment]
    if kind == CANCELLED:
        code = launcher.run(study_faults.cancelled_run, output, *arguments, dagster_home(project))
    elif kind == signal.SIGKILL:
        code = launcher.run(study_faults.killed_refresh, output, *arguments)
    else:
        code = launcher.run(study_faults.materialize, output, *arguments, int(kind))
    return code, output.read_text()


def all_equal(found: dict[str, Arrays], wanted: dict[str, Arrays]) -> bool:
    return found.keys() == wanted.keys() and all(equal(found[name], wanted[name]) for name in found)


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


def assert_taken_over(setting: Setting, left: dict[str, int], said: str) -> int:
    """Artifacts that a run went on with computed what was missing and no more."""
    taken = 0
    for name, computed in re.findall(COMPUTED, said, re.M):
        if name.rpartition("/")[2] in PER_BLOCK and name in left:
            assert int(computed) == setting.blocks[name] - left[name], name
            taken += left[name]
    return taken


def assert_ends_well(project: Project, setting: Setting) -> int:
    """A last run, undisturbed, ends as if nothing had been; how many blocks it took over."""
    left, said = finished_blocks(project), []
    bench = Workbench(load_study(project.folder), said.append)
    for node in artifacts(bench.study):
        node.refresh(bench)
    assert all_equal(stored(project), setting.after)
    names = {path.name for path in project.store.rglob("*")}
    assert not {name for name in names if "partial" in name or ".trash" in name}
    return assert_taken_over(setting, left, "\n".join(said))


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        pytest.param(signal.SIGKILL, 0, id="SIGKILL in two artifacts"),
        pytest.param(signal.SIGTERM, 0, id="SIGTERM in one artifact"),
        *(
            pytest.param(kind, 3, id=f"{name} in every one", marks=pytest.mark.campaign)
            for name, kind in KINDS.items()
        ),
    ],
)
def test_ended_at_any_moment_of_any_artifact_a_study_is_whole_and_resumes(
    request, launcher, tmp_path, kind, rounds
):
    """One run after the other is ended, each in a later artifact than the one before."""
    setting: Setting = request.getfixturevalue("thorough" if rounds else "setting")
    rng = random.Random(f"{kind} {rounds}")
    names = order_of(setting, kind)
    fell, taken = Counter(), 0
    for number in range(max(rounds, 1)):
        project = setting.project.copy(tmp_path / str(number))
        for name in names if rounds else sorted(rng.sample(names, FEW[kind]), key=names.index):
            left = finished_blocks(project)
            code, said = disturb(launcher, project, kind, moment(setting, name, rng))
            assert_ended(project, kind, code, said)
            fell.update(re.findall(f"{study_faults.FAULT} (.*)", said))
            taken += assert_taken_over(setting, left, said)
            assert_old_or_new(project, setting)
            if study_faults.FAULT not in said:  # the run was over: all of it is current
                project = setting.project.copy(tmp_path / f"{number} {name.replace('/', ' ')}")
        taken += assert_ends_well(project, setting)
    print(f"\n{kind}: {fell.total()} faults, {taken} blocks taken over; {dict(fell)}")
    assert fell.total() >= (30 if rounds else 1)
    assert taken > 0 or not rounds


def order_of(setting: Setting, kind) -> list[str]:
    """The artifacts as that kind of run refreshes them: the stages' order, or Dagster's."""
    if kind == signal.SIGKILL:
        return [node.name for node in artifacts(load_study(setting.project.folder))]
    return list(setting.changes)


def assert_ended(project: Project, kind, code: int, said: str) -> None:
    """As that kind of fault should; or not at all, when the run was over before it came."""
    if kind == CANCELLED:
        assert statuses(project)[0] in ("CANCELED", "SUCCESS"), said
    elif kind == signal.SIGKILL:
        assert code in (-signal.SIGKILL, 0), said
    else:
        assert code in (INTERRUPTED, 0), said
        assert "Traceback" not in said
        assert code == 0 or "interrupted. Every artifact that was stored is complete" in said


def dagster_home(project: Project) -> str:
    """An instance of Dagster with this repository's settings."""
    home = project.root / "dagster"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    return str(home)


def statuses(project: Project) -> list[str]:
    """Of the recorded runs, the latest first."""
    with dg.DagsterInstance.from_config(str(project.root / "dagster")) as instance:
        return [run.status.value for run in instance.get_runs()]


# Of 15 chunks: 15 links of the clone, then two changes for each that is written.
IN_THE_MIDDLE = Moment("direct/perturbation_influences", 31, below="/perturbation_influences/c.")


def test_a_cancelled_run_goes_on_at_its_first_missing_block_when_it_is_executed_again(
    setting, launcher, tmp_path
):
    project, output = setting.project.copy(tmp_path / "project"), tmp_path / "output"
    folder, home = str(project.folder), dagster_home(project)
    launcher.run(study_faults.cancelled_run, output, folder, IN_THE_MIDDLE, home)
    assert statuses(project) == ["CANCELED"], output.read_text()
    left = finished_blocks(project)
    name = IN_THE_MIDDLE.artifact
    assert 0 < left[name] < setting.blocks[name]
    assert launcher.run(study_faults.reexecute, output, folder, home) == 0, output.read_text()
    said = output.read_text()
    steps = re.findall("steps: (.*)", said)[0].split()
    assert "tiny__direct__perturbation_influences" in steps
    assert "tiny__model" not in steps, "what had succeeded is not asked again"
    computed = setting.blocks[name] - left[name]
    assert f"{name}: version 2, {computed} blocks computed, {left[name]} kept" in said
    assert statuses(project) == ["SUCCESS", "CANCELED"]
    assert_ends_well(project, setting)


def test_a_killed_run_is_recorded_as_failed_and_does_not_block_the_next(
    setting, launcher, tmp_path
):
    """Its asset was in a pool of one place, which nobody would have freed."""
    project, output = setting.project.copy(tmp_path / "project"), tmp_path / "output"
    arguments = [str(project.folder), IN_THE_MIDDLE, int(signal.SIGKILL), dagster_home(project)]
    assert launcher.run(study_faults.materialize, output, *arguments) == -signal.SIGKILL
    assert statuses(project) == ["STARTED"], "nobody has noticed yet"
    left = finished_blocks(project)
    arguments[1] = Moment("none", 1)
    assert launcher.run(study_faults.materialize, output, *arguments) == 0, output.read_text()
    assert assert_taken_over(setting, left, output.read_text()) > 0
    assert statuses(project) == ["SUCCESS", "FAILURE"]
