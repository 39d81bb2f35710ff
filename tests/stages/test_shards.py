"""Processes of an array job share blocks through a folder: the same bits as one process."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.errors import InfluenceDagError, StoreError, StudyError
from influence_dag.stages import shards
from influence_dag.stages.exchange import Exchange, Shard, name_of
from influence_dag.stages.executors import LocalExecutor
from influence_dag.stages.graph import artifacts
from influence_dag.stages.shards import compute_share, driving
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study

FIRST = ("dataset", "model", "gradients", "hessian", "direct/curvature")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(shards, "POLL", 0.01)
    monkeypatch.setattr(shards, "BEAT", 0.05)


def in_small_blocks(finished_project: Project, folder: Path) -> Project:
    """What is cut into blocks is still to be computed."""
    project = finished_project.copy(folder, artifacts=FIRST)
    project.write_settings(compute={"block_bytes": "4KiB"})
    return project


@pytest.fixture
def begun(finished_project: Project, tmp_path: Path) -> Project:
    return in_small_blocks(finished_project, tmp_path)


@pytest.fixture(scope="module")
def alone(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """By one process, with the same blocks."""
    project = in_small_blocks(finished_project, tmp_path_factory.mktemp("alone"))
    refresh(Workbench(load_study(project.folder)))
    return project


def driven(project: Project, shard: Shard, patience: float = 20.0) -> None:
    study = load_study(project.folder)
    with driving(shard, study, patience) as executor, shards.beating(study, 1):
        refresh(Workbench(study, executor=executor))


def refresh(bench: Workbench) -> None:
    for node in artifacts(bench.study):
        if node.name.startswith("direct/"):
            node.refresh(bench)


def others(project: Project, *numbers: int, of: int, patience: float = 20.0):
    """The other shards, each in a thread; what they did or raised, by number."""
    told: dict[int, object] = {}

    def work(number: int) -> None:
        study = load_study(project.folder)
        try:
            told[number] = compute_share(study, Shard(number, of), patience=patience)
        except Exception as error:
            told[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    return told, threads


def assert_same_bits(alone: Project, project: Project) -> None:
    stored, made = alone.results.store, project.results.store
    for name in ("influence_factors", "influences", "perturbation_influences", "summary"):
        there, here = stored.version(f"direct/{name}"), made.version(f"direct/{name}")
        assert here.verify(checksums=True) == ()
        for variable in there.variables:
            assert here.read(variable).tobytes() == there.read(variable).tobytes(), variable


@pytest.mark.parametrize("of", [2, pytest.param(3, marks=pytest.mark.campaign)])
def test_shards_at_the_same_time_store_what_one_process_stores(alone, begun, of):
    told, threads = others(begun, *range(2, of + 1), of=of)
    driven(begun, Shard(1, of))
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(told) == list(range(2, of + 1))
    assert_same_bits(alone, begun)
    left = [path for path in begun.root.rglob(".influence_dag/shards/tiny-*/*") if path.is_dir()]
    assert left == [], "nothing is left of what was handed over"
    blocks = blocks_shared(begun, of)
    assert told == {number: blocks[number - 1] for number in told}, "each its own, and once"


def blocks_shared(project: Project, of: int) -> list[int]:
    """How many tasks each shard has, by what a local executor is asked for."""
    counts = [0] * of

    class Counting(LocalExecutor):
        def run(self, tasks, /):
            wanted = list(tasks)
            for k in range(len(wanted)):
                counts[k % of] += 1
            yield from super().run(wanted)

    shutil.rmtree(project.store / "direct", ignore_errors=True)
    copy = Workbench(load_study(project.folder), executor=Counting())
    for node in artifacts(copy.study):
        if node.name.startswith("direct/"):
            node.refresh(copy)
    return counts


def test_a_missing_shard_is_named_and_a_rerun_goes_on_from_what_was_finished(alone, begun):
    with pytest.raises(InfluenceDagError, match=r"shard 2 of 2 has blocks .*--shard 2/2 and shard"):
        driven(begun, Shard(1, 2), patience=0.1)
    kept = begun.results.store.unfinished()
    assert sum(kept.values()) >= 1
    # The first is not there any more, and left its plan: one after the other goes too.
    told, threads = others(begun, 2, of=2)
    driven(begun, Shard(1, 2))
    threads[0].join(timeout=30)
    assert isinstance(told[2], int)
    assert_same_bits(alone, begun)


LEFT = {
    "whole": lambda left: left,
    "empty": lambda left: b"",
    "truncated": lambda left: left[:-9],
    "with another bit": lambda left: left[:-9] + bytes([left[-9] ^ 64]) + left[-8:],
}


@pytest.mark.parametrize("state", LEFT)
def test_what_a_shard_left_whole_is_taken_by_the_next_run_and_what_is_not_is_computed_again(
    alone, begun, monkeypatch, state
):
    """It was killed, or all were: arrays lie there, of tasks that are asked for again."""
    plan, saved, again = Exchange.plan, [], []
    computed = shards.run

    def counting(task):
        again.append(task)
        return computed(task)

    monkeypatch.setattr(shards, "run", counting)

    def with_what_was_left(self, tasks, shard):
        folder = plan(self, tasks, shard)
        for position, task in enumerate(tasks):
            if Shard(2, 2).owns(position):
                path = folder / f"{name_of(task)}.arrays"
                shards._leave(path, computed(task))
                path.write_bytes(LEFT[state](path.read_bytes()))
                saved.append(task)
        return plan(self, tasks, shard)  # as the next run writes it

    monkeypatch.setattr(Exchange, "plan", with_what_was_left)
    driven(begun, Shard(1, 2), patience=0.1)
    assert len(saved) >= 3
    assert [task in again for task in saved] == [state != "whole"] * len(saved)
    assert_same_bits(alone, begun)


def test_the_folder_is_looked_through_once_for_all_that_is_there(tmp_path, monkeypatch):
    """Else the time is the square of the number of blocks."""
    names, looked, glob = [f"{k:02}" for k in range(50)], [], Path.glob

    def counted(folder, pattern):
        looked.append(pattern)
        return glob(folder, pattern)

    def plan(tasks, shard):
        for name in names[1::2]:
            shards._leave(tmp_path / f"{name}.arrays", {"of": name})
        return tmp_path

    monkeypatch.setattr(Path, "glob", counted)
    monkeypatch.setattr(shards, "name_of", str)
    monkeypatch.setattr(shards, "run", lambda task: {"of": task})
    executor = shards.ShardExecutor(Shard(1, 2), SimpleNamespace(plan=plan))
    assert dict(executor.run(names)) == {name: {"of": name} for name in names}
    assert len(looked) == 1 + len(names) // 2


def test_a_second_shard_that_drives_is_refused_and_disturbs_nobody(alone, begun, monkeypatch):
    """Each took the other's plans away, and waited for its locks."""
    monkeypatch.setattr(shards, "DRIVEN", 0.1)
    study = load_study(begun.folder)
    told, threads = others(begun, 2, of=2)
    with driving(Shard(1, 2), study) as executor, shards.beating(study, 1):
        with (
            pytest.raises(StoreError, match=r"plans of tiny's shards .*one --shard 1/n at a time"),
            driving(Shard(1, 2), study),
        ):
            pass
        refresh(Workbench(study, executor=executor))
    threads[0].join(timeout=30)
    assert isinstance(told[2], int), told
    assert_same_bits(alone, begun)


def test_whether_the_first_has_ended_is_told_by_one_clock(alone, begun, monkeypatch):
    """The folder's: that of the machine may be ahead of it, or behind."""
    now = time.time
    monkeypatch.setattr(shards.time, "time", lambda: now() + 3600)
    told, threads = others(begun, 2, of=2)
    driven(begun, Shard(1, 2))
    threads[0].join(timeout=5)
    assert isinstance(told.get(2), int), "it goes on waiting for who has ended"


def test_an_error_of_a_block_ends_all_with_the_same_words(begun, monkeypatch):
    from influence_dag.errors import ModelError

    def failing(task):
        raise ModelError("the rows are wrong")

    told, threads = others(begun, 2, of=2)
    own = shards.run
    monkeypatch.setattr(
        shards,
        "run",
        lambda task: own(task) if threading.current_thread() not in threads else failing(task),
    )
    with pytest.raises(ModelError, match="the rows are wrong"):
        driven(begun, Shard(1, 2))
    threads[0].join(timeout=30)
    assert isinstance(told[2], ModelError)


def test_the_error_of_a_file_whose_name_is_no_text_is_told(begun):
    exchange = Exchange(load_study(begun.folder))
    exchange.enter()
    exchange.end(StudyError("no \udcff.csv"))
    assert exchange.ended()[1] == r"no \udcff.csv"


def test_a_shard_without_a_first_one_says_so(begun):
    with pytest.raises(InfluenceDagError, match=r"no block was asked for .*start --shard 1/2"):
        compute_share(load_study(begun.folder), Shard(2, 2), patience=0.05)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(StudyError, match="write i/n with i from 1 to n, such as 2/8"):
        Shard.parse(text)


def test_what_others_cannot_share_is_refused(begun):
    begun.write_settings(store={"path": "memory://shards"})
    with pytest.raises(StudyError, match="memory of one process, which other shards do not see"):
        driven(begun, Shard(1, 2))
    begun.write_settings(store={"path": "store"}, compute={"executor": "dask"})
    with pytest.raises(StudyError, match=r"compute\.executor is dask, and --shard"):
        driven(begun, Shard(1, 2))


def test_shares_are_disjoint_and_whole():
    owners = [[shard for shard in (1, 2, 3) if Shard(shard, 3).owns(k)] for k in range(10)]
    np.testing.assert_array_equal(np.array(owners).ravel(), [k % 3 + 1 for k in range(10)])


@pytest.mark.campaign
def test_commands_of_an_array_job_store_what_one_stores_though_one_is_killed(alone, begun):
    """A process each; the second one is killed when it has left something, and comes again."""
    command = [sys.executable, "-m", "influence_dag", "materialize", str(begun.folder), "--quiet"]

    def started(shard: str) -> subprocess.Popen:
        return subprocess.Popen([*command, "--shard", shard])

    second, first = started("2/2"), started("1/2")
    deadline = time.monotonic() + 120
    while not (left := list(begun.root.rglob("*.arrays"))) and time.monotonic() < deadline:
        time.sleep(0.002)
    second.kill()
    assert left
    again = started("2/2")
    assert [each.wait(timeout=240) for each in (first, again, second)] == [0, 0, -9]
    assert_same_bits(alone, begun)


def test_studies_of_one_name_that_are_stored_apart_share_no_blocks(begun):
    here = Exchange(load_study(begun.folder)).folder
    begun.write_settings(store={"path": "another"})
    assert Exchange(load_study(begun.folder)).folder != here


def test_a_folder_of_another_user_is_refused(begun, monkeypatch):
    exchange = Exchange(load_study(begun.folder))
    exchange.enter()
    assert exchange.folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    with pytest.raises(StudyError, match="and this is user 4711; shards of one user share a study"):
        exchange.enter()
