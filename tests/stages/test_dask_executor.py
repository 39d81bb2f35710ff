"""Blocks computed by the workers of a Dask cluster, whatever becomes of workers and scheduler."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from bits import assert_same_bits, refresh
from spawned import Dying, Remembering
from tiny_project import Project

from influence_dag.errors import InfluenceDagError, NotConvergedError, StoreError, StudyError
from influence_dag.stages import dask_executor, executors
from influence_dag.stages.dask_executor import AHEAD, DaskExecutor
from influence_dag.stages.executors import executor_of, one_run
from influence_dag.store import ArtifactStore
from influence_dag.store.drafts import StoredDraft

INFLUENCES = "direct/influences"
DASK = {"executor": "dask", "workers": 1}
CHANGES = {
    "methods": {"direct": {}, "cg": None, "ekfac": {}},
    "perturbation": {"methods": ["direct"]},
    "compute": {"block_bytes": "1KiB"},
}


@pytest.fixture(scope="module")
def cluster():
    executor = DaskExecutor(workers=2)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that this process has computed."""
    project = Project(tmp_path_factory.mktemp("finished"), **CHANGES)
    refresh(project.folder)
    return project


@pytest.fixture(scope="module")
def task(finished):
    """Of the blocks of a study one that computes nothing but a product."""
    remembering = Remembering()
    shutil.rmtree(finished.store / INFLUENCES)
    refresh(finished.folder, remembering, until=INFLUENCES)
    return next(task for task, _ in remembering.done if task.artifact == INFLUENCES)


@pytest.fixture
def written(monkeypatch):
    """Which blocks were written, in order."""
    blocks, write = [], StoredDraft.write

    def writing(draft, name, start, *arguments):
        write(draft, name, start, *arguments)
        blocks.append((draft.artifact, name, tuple(start)))

    monkeypatch.setattr(StoredDraft, "write", writing)
    return blocks


class Through:
    """Hands each task to another executor after something has been done to it."""

    def __init__(self, executor, change):
        self.executor, self.change = executor, change

    def run(self, tasks, /):
        return self.executor.run(map(self.change, tasks))


def workers() -> set[int]:
    """Processes of clusters that this process has started."""
    servers = [
        child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())
    ]
    return {child.pid for server in servers for child in server.children()}


def test_a_study_is_computed_by_workers_of_its_own_as_its_settings_say(tmp_path, finished):
    """Which end with the run; whoever computed, nothing is computed again by the other."""
    before = workers()
    project = Project(tmp_path, **CHANGES)
    project.write_settings(compute=DASK)
    project.materialize()
    assert not executors._open
    assert workers() == before
    assert_same_bits(ArtifactStore(project.store), ArtifactStore(finished.store))
    project.write_settings(compute={"executor": "local", "workers": None})
    assert all(update.blocks_computed == 0 for update in project.refresh().values())


def test_nothing_is_computed_and_nobody_started_when_only_the_executor_changes(finished):
    before = finished.data_versions()
    numbers = {name: finished.results.store.version(name).number for name in before}
    finished.write_settings(compute=DASK)
    done = finished.refresh()
    finished.write_settings(compute={"executor": "local", "workers": None})
    assert {update.blocks_computed for update in done.values()} == {0}
    assert finished.data_versions() == before
    assert numbers == {name: finished.results.store.version(name).number for name in before}
    assert not executors._open


def test_two_tasks_a_worker_exist_at_most(cluster, task):
    assert len(workers()) >= 2
    drawn, most = [], AHEAD * 2
    results = cluster.run(drawn.append(k) or task for k in range(20))
    for taken in range(12):
        next(results)
        assert len(drawn) <= most + taken
    time.sleep(0.5)
    assert len(drawn) <= most + 11  # what is finished and was not taken counts
    results.close()
    until = time.monotonic() + 10
    while (busy := still_there(cluster)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not busy


def still_there(cluster) -> list[str]:
    """Tasks under way, and results that a worker keeps."""
    found = [*cluster._client.processing().values(), *cluster._client.has_what().values()]
    return [key for keys in found for key in keys]


def test_the_blocks_of_a_worker_that_is_killed_are_computed_by_another(
    tmp_path, cluster, finished, written
):
    project, mark = finished.copy(tmp_path / "project"), tmp_path / "killed"
    shutil.rmtree(project.store / "direct")

    def deadly(task):
        if task.artifact != INFLUENCES:
            return task
        return Dying.of(task, (0, 0, 16), mark)

    refresh(project.folder, Through(cluster, deadly), until=INFLUENCES)
    assert mark.exists()
    assert len(written) == len(set(written))
    stored = [ArtifactStore(each.store).version(INFLUENCES) for each in (project, finished)]
    assert stored[0].data_version == stored[1].data_version
    assert stored[0].read("influences").tobytes() == stored[1].read("influences").tobytes()


@pytest.mark.campaign
def test_a_block_that_ends_every_worker_is_an_error(cluster, task):
    deadly = Dying.of(task, task.tile.start, None)
    with pytest.raises(InfluenceDagError, match=r"direct/influences\[.*KilledWorker.*memory"):
        list(cluster.run([deadly]))
    assert len(list(cluster.run([task]))) == 1  # and the cluster as good as before


def test_an_error_of_a_task_is_raised_as_here_and_the_cluster_goes_on(
    tmp_path, cluster, finished, task
):
    project = finished.copy(tmp_path / "project")
    project.write_settings(methods={"cg": {"rtol": 1e-12, "rank": 1, "maxiter": 1}})
    with pytest.raises(NotConvergedError, match=r"cg, test rows: .*test-0") as raised:
        refresh(project.folder, cluster, until="cg/influence_factors")
    first, second = raised.value.__notes__
    assert first.startswith("while computing cg/influence_factors[")
    assert second == f"on {socket.gethostname()}"
    assert len(list(cluster.run([task]))) == 1


def test_what_a_worker_does_not_see_is_told_with_its_machine(cluster, task, tmp_path):
    elsewhere = replace(task, inputs=replace(task.inputs, root=str(tmp_path / "nowhere")))
    with pytest.raises((StudyError, StoreError), match=re.escape(socket.gethostname())) as raised:
        list(cluster.run([elsewhere]))
    assert raised.value.__notes__[0].startswith("while computing direct/influences[")


def test_where_no_scheduler_answers_the_address_is_named_soon(tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    project = Project(tmp_path, compute={"executor": "dask", "address": address})
    began = time.monotonic()
    with pytest.raises(StudyError, match=rf"no Dask scheduler answers at {address}"):
        refresh(project.folder)
    assert time.monotonic() - began < 20
    assert "dataset" in ArtifactStore(project.store).names()  # which the driver makes


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"install influence-dag\[distributed\]"):
        DaskExecutor("tcp://127.0.0.1:8786")


def test_only_the_device_cuda_asks_for_workers_with_a_gpu(monkeypatch, finished):
    """Asked of the executor, because a cluster without such workers computes nothing."""
    asked = []

    class Recording:
        is_connected = True

        def __init__(self, address, workers, *, gpu):
            asked.append((address, workers, gpu))

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(dask_executor, "DaskExecutor", Recording)
    finished.write_settings(compute=DASK | {"device": "cpu"})
    bench = finished.bench()
    finished.write_settings(compute={"executor": "local", "workers": None, "device": "auto"})
    with one_run():
        assert executor_of(bench) is executor_of(bench)
        bench.device = type("Device", (), {"type": "cuda"})()
        with one_run():
            executor_of(bench)
    assert asked == [("local", 1, False), ("local", 1, True), "closed", "closed"]


def test_workers_without_a_gpu_are_not_waited_for_for_ever(cluster, task, monkeypatch):
    monkeypatch.setattr(dask_executor, "PATIENCE", 0.0)
    monkeypatch.setattr(dask_executor, "LOOKING", 0.2)
    on_gpu = DaskExecutor(cluster._client.scheduler.address, gpu=True)
    with pytest.raises(StudyError, match=r"no worker with the resource GPU.*--resources GPU=1"):
        list(on_gpu.run([task]))
    on_gpu.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def running_cluster(tmp_path):
    """A scheduler and a worker that others have started, and the scheduler's process."""
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = f"scheduler --host 127.0.0.1 --port {address.rpartition(':')[2]} --no-dashboard"
    worker = f"worker {address} --host 127.0.0.1 --nthreads 1 --no-nanny --no-dashboard"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command.split()],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for command in (f"{scheduler} --dashboard-address 127.0.0.1:0", worker)
    ]
    yield address, started[0]
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.campaign
def test_when_the_scheduler_is_lost_what_was_written_is_kept(
    tmp_path, running_cluster, finished, written
):
    address, scheduler = running_cluster
    until = time.monotonic() + 30
    while True:
        try:
            executor = DaskExecutor(address)
            break
        except StudyError:
            assert time.monotonic() < until
    project = Project(tmp_path / "project", **CHANGES)
    refresh(project.folder, until="gradients")

    class Losing:
        def run(self, tasks, /):
            for number, done in enumerate(executor.run(tasks)):
                if number == 4:
                    scheduler.send_signal(signal.SIGKILL)
                yield done

    written.clear()
    with pytest.raises(InfluenceDagError, match=f"the Dask scheduler at {address} is lost"):
        refresh(project.folder, Losing(), until="direct/perturbation_influences")
    assert not executor.is_connected
    executor.close()
    refresh(project.folder)
    assert len(written) == len(set(written))  # nothing of what was finished again
    assert_same_bits(ArtifactStore(project.store), ArtifactStore(finished.store))
