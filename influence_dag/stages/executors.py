"""Who computes the blocks of an artifact: this process, or others.

An executor is handed tasks and gives back arrays. It neither locks nor writes: the driver does,
in one process, and takes results in whatever order they come.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from influence_dag.stages.landing import landed
from influence_dag.stages.tasks import BlockTask, Results, started
from influence_dag.stages.workbench import Workbench
from influence_dag.study.torch_modes import lock_of_process

if TYPE_CHECKING:
    from influence_dag.stages.dask_executor import DaskExecutor


class Executor(Protocol):
    """What computes tasks.

    Every task comes back once, in any order, with what `tasks.run` returns of it. Tasks are drawn
    as they are needed, and only few may be under way or wait to be taken: results are as large as
    `compute.block_bytes`, and whoever writes them may be slower. An error of a task is raised as
    `run` raised it, with its note of the artifact and tile. When the generator is closed, what is
    under way is called off.
    """

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        """The arrays of each task, as they are ready."""
        ...


class LocalExecutor:
    """Computes in this process, on the thread that asks, in order and when asked for the next.

    A GPU is given a block before the one before it is handed on.
    """

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        return landed((task, started(task)) for task in tasks)


_Asked = tuple[int, str, int | None, bool]
_open: dict[_Asked, "DaskExecutor"] = {}
_given: ContextVar[Executor | None] = ContextVar("given", default=None)
_runs = 0
_changing = lock_of_process()


def executor_of(bench: Workbench) -> Executor:
    """What computes a study's blocks: as the workbench or the run was told, or as `compute` says.

    Workers come up when there first is something to compute, and serve all that is refreshed
    until the outermost `one_run` ends, or else the process.
    """
    if (told := bench.executor or _given.get()) is not None:
        return told
    compute = bench.settings.compute
    if compute.executor == "local":
        return LocalExecutor()
    from influence_dag.stages.dask_executor import DaskExecutor

    address, gpu = compute.address or "local", bench.device.type == "cuda"
    asked = (os.getpid(), address, compute.workers, gpu)  # a forked process has no connection
    with _changing:
        found = _open.get(asked)
        if found is None or not found.is_connected:
            bench.report(f"blocks are computed by Dask workers ({address})")
            found = _open[asked] = DaskExecutor(address, compute.workers, gpu=gpu)
        return found


@contextmanager
def one_run(executor: Executor | None = None) -> Iterator[None]:
    """Inside, artifacts share their workers, which end with it; or all are told who computes.

    Of what is refreshed in other threads meanwhile, nobody is told.
    """
    global _runs
    with _changing:
        _runs += 1
    told = _given.set(executor or _given.get())
    try:
        yield
    finally:
        _given.reset(told)
        with _changing:
            _runs -= 1
            own = [asked for asked in _open if asked[0] == os.getpid()]
            ending = [] if _runs else [_open.pop(asked) for asked in own]
        for executor in ending:
            executor.close()
