"""Who computes the blocks of an artifact: this process, or others.

An executor is handed tasks and gives back arrays. It neither locks nor writes: the driver does,
in one process, and takes results in whatever order they come.
"""

from collections.abc import Generator, Iterable
from typing import Protocol

from influence_dag.stages.tasks import Arrays, BlockTask, run

Results = Generator[tuple[BlockTask, Arrays], None, None]


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
    """Computes in this process, on the thread that asks, in order and when asked for the next."""

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        for task in tasks:
            yield task, run(task)
