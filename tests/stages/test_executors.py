"""Whoever computes the blocks, the same bits are stored; only one process locks and writes."""

import os
import shutil
import threading
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from bits import assert_same_bits, refresh
from project_copy import copy_project
from spawned import Backwards, Remembering, SpawnedExecutor, dask_executor
from tiny_project import Project

from influence_dag.errors import ModelError, NotConvergedError
from influence_dag.stages import executors
from influence_dag.stages.executors import LocalExecutor, executor_of, one_run
from influence_dag.stages.graph import artifacts
from influence_dag.stages.tasks import run
from influence_dag.stages.workbench import Workbench
from influence_dag.store import ArtifactStore
from influence_dag.store.drafts import StoredDraft
from influence_dag.study.loading import load_study

SWEEP = {
    "damping": [0.1, 0.5],
    "methods": {"ekfac": {}, "arnoldi": {"rank": 6}, "cg": {"rtol": 1e-10, "rank": 8}},
    "perturbation": {"methods": ["direct", "ekfac"]},
    "compute": {"block_bytes": "8KiB"},
}
ONE_DAMPING = {
    "damping": 0.1,
    "methods": {"cg": {"rtol": 1e-6, "preconditioner": "nystroem"}},
    "perturbation": {"methods": ["direct", "cg"]},
    "compute": {"dtype": "float32", "block_bytes": "2KiB"},
}


# Executors that do not compute in this process.
OTHERS = {"processes": SpawnedExecutor, "dask": dask_executor}


SLOW = {"dask"}  # to start; test_dask_executor asks the same of a smaller study


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.campaign] * (name in SLOW)) for name in OTHERS],
)
def others(request, tmp_path_factory):
    """An executor whose workers have another working directory; they come up once."""
    executor = OTHERS[request.param](tmp_path_factory.mktemp("nowhere"))
    yield executor
    executor.close()


def edited(project: Project) -> None:
    """A training row is changed, one goes and one comes; a test row is changed."""
    train = [list(row) for row in project.rows["train"]]
    train[5][1], train[20] = 3.25, ["new", 0.5, 1.5, -0.25, 1]
    project.write("train", train[:-1])
    project.edit("test", 6, depth=0.75)


@pytest.mark.parametrize(
    ("changes", "curvature"),
    [
        pytest.param(SWEEP, "pinned", id="sweep", marks=pytest.mark.campaign),
        pytest.param(ONE_DAMPING, "on_change", id="one damping"),
    ],
)
def test_other_processes_compute_the_same_bits(tmp_path, others, changes, curvature):
    """From nothing, and after an edit, when iterative solves start from what is stored.

    A pinned curvature multiplies with rows of a version of the dataset that is not current.
    """
    here, there = Project(tmp_path / "here", **changes), Project(tmp_path / "there", **changes)
    for _ in range(2):
        refresh(here.folder)
        refresh(there.folder, others)
        assert_same_bits(ArtifactStore(here.store), ArtifactStore(there.store))
        for project in (here, there):
            project.write_settings(model={"refit": "pinned"}, curvature={"refresh": curvature})
            edited(project)


@pytest.mark.campaign
def test_other_processes_compute_the_same_bits_of_the_digits(tmp_path, others):
    here, there = (copy_project(tmp_path / name) for name in ("here", "there"))
    refresh(here / "assets/digits")
    refresh(there / "assets/digits", others)
    stores = [ArtifactStore(root / "data/store/digits") for root in (here, there)]
    assert_same_bits(*stores)


def test_blocks_may_come_in_any_order(tmp_path):
    changes = {"methods": {"cg": None}, "compute": {"block_bytes": 1024}}
    here, there = Project(tmp_path / "here", **changes), Project(tmp_path / "there", **changes)
    refresh(here.folder)
    refresh(there.folder, Backwards())
    assert_same_bits(ArtifactStore(here.store), ArtifactStore(there.store))


def test_an_error_of_another_process_is_raised_here_with_artifact_and_tile(tmp_path, others):
    project = Project(tmp_path, methods={"cg": {"rtol": 1e-12, "rank": 1, "maxiter": 1}})
    with pytest.raises(NotConvergedError, match=r"cg, test rows: .*test-0") as raised:
        refresh(project.folder, others)
    assert raised.value.__notes__[0].startswith("while computing cg/influence_factors[")
    store = ArtifactStore(project.store)
    assert "direct/curvature" in store.names()
    assert "cg/influence_factors" not in store.names()
    project.write_settings(methods={"cg": {"maxiter": None, "rtol": 1e-10}})
    refresh(project.folder, others, until="cg/influence_factors")  # processes as good as before
    assert "cg/influence_factors" in store.names()


def test_here_an_error_names_artifact_and_tile_as_well(tmp_path):
    project = Project(tmp_path, methods={"cg": {"rtol": 1e-12, "rank": 1, "maxiter": 1}})
    with pytest.raises(NotConvergedError) as raised:
        refresh(project.folder)
    assert raised.value.__notes__ == ["while computing cg/influence_factors[0:10]"]


def test_rows_that_miss_the_tolerance_are_told_whoever_solves(tmp_path, others):
    loose = {"cg": {"rtol": 1e-12, "rank": 1, "maxiter": 4, "on_failure": "warn"}}
    changes = {"damping": [0.1, 0.5], "methods": loose, "compute": {"block_bytes": 1024}}
    said = []
    for name, executor in [("here", None), ("there", others)]:
        project = Project(tmp_path / name, **changes)
        with pytest.warns(RuntimeWarning) if executor is None else nullcontext():
            told = refresh(project.folder, executor, until="cg/influence_factors")
        said.append(sorted(line for line in told if "missed the tolerance" in line))
    assert said[0]
    assert said[0] == said[1]


def test_few_tasks_are_drawn_ahead_of_what_is_taken(tmp_path, others):
    remembering = Remembering()
    refresh(Project(tmp_path).folder, remembering, until="gradients")
    task, arrays = remembering.done[0]
    for executor in (LocalExecutor(), others):
        drawn = []
        results = executor.run(drawn.append(k) or task for k in range(40))
        next(results)
        assert len(drawn) < 20
        results.close()
        again = [found for _, found in executor.run([task] * 3)]
        assert [each.keys() for each in again] == [arrays.keys()] * 3
        assert len(drawn) < 20


SWAPS = """\
import torch
from torch import nn


class Swaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        order = torch.arange(len(x))
        if len(x) > 4:
            order[:2] = torch.tensor([1, 0])
        return self.out(torch.tanh(self.inner(x[order])[order]))


def build():
    return Swaps()
"""


def test_a_layer_that_another_process_cannot_capture_is_made_otherwise(tmp_path, others):
    """Which some block shows, not the two rows that the layout was made with."""
    stores, said = [], []
    for name, executor in [("here", None), ("there", others)]:
        project = Project(tmp_path / name, model=SWAPS)
        said.append(refresh(project.folder, executor, until="gradients"))
        stores.append(ArtifactStore(project.store))
    assert all(any("the gradients of 'inner'" in line for line in told) for told in said)
    assert stores[1].version("gradients").attrs["uncaptured_layers"] == ["inner"]
    assert_same_bits(*stores)


def test_numbers_of_another_process_are_looked_at_here(tmp_path):
    class Broken:
        def run(self, tasks, /):
            for task in tasks:
                yield task, {"influences": np.full(task.tile.shape, np.inf)}

    project = Project(tmp_path)
    refresh(project.folder, until="direct/influences")
    project.write_settings(store={"max_relative_error": 1e-3})
    bench = Workbench(load_study(project.folder), executor=Broken())
    node = next(node for node in artifacts(bench.study) if node.name == "direct/influences")
    with pytest.raises(ModelError, match="influences is not finite at test 'test-00'"):
        node.refresh(bench)


def test_only_a_few_blocks_exist_at_a_time(tmp_path, monkeypatch):
    alive, seen, write, fourth = set(), [], StoredDraft.write, threading.Event()

    class Block(np.ndarray):
        """An array that says when it is no more."""

    class Counting:
        def run(self, tasks, /):
            for task in tasks:
                seen.append(len(alive))
                if len(seen) == 4:
                    fourth.set()
                yield task, {name: counted(values) for name, values in run(task).items()}

    def counted(values):
        block = values.view(Block)
        alive.add(id(block))
        weakref.finalize(block, alive.remove, id(block))
        return block

    def slow(draft, *arguments):
        assert fourth.wait(60)
        write(draft, *arguments)

    project = Project(tmp_path, compute={"block_bytes": 512}, methods={"cg": None})
    refresh(project.folder)
    shutil.rmtree(project.store / "direct/perturbation_influences")
    monkeypatch.setattr(StoredDraft, "write", slow)
    refresh(project.folder, Counting())
    assert len(seen) == 15
    assert max(seen) == 3  # of four the one that is asked for
    assert not alive


def test_a_run_tells_no_other_thread_who_computes(finished_project):
    """Another study's would be sent there, and after two runs that overlap all that follows."""
    bench, told, found = finished_project.bench(), Remembering(), []
    with one_run(told):
        other = threading.Thread(target=lambda: found.append(executor_of(bench)))
        other.start()
        other.join()
        assert executor_of(bench) is told
    assert found[0] is not told
    assert executor_of(bench) is not told


def test_workers_of_the_process_that_forked_are_not_ended_by_the_child(monkeypatch):
    """Their connection is the parent's: a child has not the threads that closing it waits for."""
    ended = []

    class Workers:
        def __init__(self, name):
            self.close = lambda: ended.append(name)

    opened = {(pid, "local", None, False): Workers(pid) for pid in (os.getpid(), -1)}
    monkeypatch.setattr(executors, "_open", opened)
    with one_run():
        pass
    assert ended == [os.getpid()]
    assert [asked[0] for asked in opened] == [-1]
