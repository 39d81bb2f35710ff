"""Executors of the tests: other processes, blocks out of order, one that remembers its tasks."""

import os
import signal
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import chdir
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from influence_dag.stages.dask_executor import DaskExecutor
from influence_dag.stages.executors import LocalExecutor
from influence_dag.stages.tasks import BlockTask, Compute, Kernel, Results, run
from influence_dag.stages.workbench import Workbench


class SpawnedExecutor:
    """Computes tasks in processes that know nothing but what a task says, in a folder of theirs."""

    def __init__(self, folder: Path, workers: int = 1):
        self.in_flight = workers + 1
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"), os.chdir, (folder,))

    def close(self) -> None:
        self.pool.shutdown()

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        waiting, under_way = iter(tasks), {}
        try:
            while True:
                for task in islice(waiting, self.in_flight - len(under_way)):
                    under_way[self.pool.submit(run, task)] = task
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        finally:
            for future in under_way:
                future.cancel()


def dask_executor(folder: Path, workers: int = 2) -> DaskExecutor:
    """Dask's workers, in a folder of theirs as well."""
    with chdir(folder):
        return DaskExecutor(workers=workers)


@dataclass(frozen=True)
class Dying(Kernel):
    """Ends the process that computes, as if it were out of memory: once, where there is a mark."""

    kernel: Kernel
    tile: tuple[int, ...]
    mark: str | None

    def at(self, bench: Workbench) -> Compute:
        compute = self.kernel.at(bench)

        def dying(tile):
            if tile.start == self.tile and not (self.mark and Path(self.mark).exists()):
                if self.mark:
                    Path(self.mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(tile)

        return dying

    @classmethod
    def of(cls, task: BlockTask, tile: tuple[int, ...], mark: Path | None) -> BlockTask:
        return replace(task, kernel=cls(task.kernel, tile, mark and str(mark)))


class Backwards:
    """Gives back a few results at a time, the last one first."""

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        waiting = iter(tasks)
        while few := list(islice(waiting, 3)):
            for task in reversed(few):
                yield task, run(task)


class Remembering(LocalExecutor):
    """Computes here, and keeps tasks with what came of them."""

    def __init__(self) -> None:
        self.done: list = []

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        for task, arrays in super().run(tasks):
            self.done.append((task, {name: values.copy() for name, values in arrays.items()}))
            yield task, arrays
