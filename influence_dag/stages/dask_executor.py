"""Blocks computed by the workers of a Dask cluster: of one on this machine, or of one that runs.

Dask moves tasks and results and starts tasks again whose worker is lost. It sees no arrays: which
blocks there are, what each reads and where it is written is not its business.
"""

import asyncio
import concurrent.futures
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from influence_dag.errors import InfluenceDagError, StoreError, StudyError
from influence_dag.stages.tasks import Arrays, BlockTask, Results, run

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

CONNECTING = 5.0  # seconds until a scheduler that does not answer is none
LOOKING = 2.0  # seconds between looks at who works
PATIENCE = 60.0  # seconds without anybody who could compute
AHEAD = 2  # tasks a worker: one that it computes, one that waits or is to be taken

METHOD = "distributed.worker.multiprocessing-method"
PRELOADED = (
    "distributed.nanny",
    "influence_dag.stages.tasks",
    "influence_dag.stages.graph",
    "torch",
)

_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)


class DaskExecutor:
    """Computes tasks on a cluster: `address` of its scheduler, or `local` for one of its own.

    A cluster of its own has `workers` processes (default: one a core) of one thread each, listens
    on the loopback interface, and ends with `close`. Of a running cluster workers may come and go.
    At most two tasks a worker are under way or wait to be taken. Tasks whose worker is lost are
    computed again by another; an error of a task is the same whoever computes it, and raised at
    once. With `gpu`, tasks go to workers that have the resource `GPU`, and occupy one.
    """

    def __init__(self, address: str = "local", workers: int | None = None, *, gpu: bool = False):
        self.address, self.gpu = address, gpu
        self._cluster = _own_cluster(workers or _cores(), gpu) if address == "local" else None
        try:
            self._client = _connected(self._cluster or address)
        except BaseException:
            if self._cluster is not None:
                self._cluster.close()
            raise
        self._seen, self._size = 0.0, 0
        self._alone: float | None = None  # since when nobody could compute

    @property
    def is_connected(self) -> bool:
        return self._client.status == "running"

    def close(self) -> None:
        """Leave the cluster; end it where it is its own."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        waiting = iter(tasks)
        finished: SimpleQueue[Future] = SimpleQueue()
        under_way: dict[Future, BlockTask] = {}
        self._alone = None
        try:
            while True:
                for task in islice(waiting, max(0, AHEAD * self._workers() - len(under_way))):
                    under_way[self._submitted(task, finished)] = task
                if not under_way:
                    return
                future = self._first_of(finished)
                task = under_way[future]
                with self._told(task):
                    arrays = future.result()
                del under_way[future], future  # which lets the worker forget it
                yield task, arrays
                del arrays  # or it would exist for as long as the next one is computed
        finally:
            if under_way and self.is_connected:
                self._client.cancel(list(under_way))

    def _submitted(self, task: BlockTask, finished: "SimpleQueue[Future]") -> "Future":
        key = f"{task.artifact}-{uuid.uuid4()}"  # a cluster's dashboard groups by what is before -
        resources = {"GPU": 1} if self.gpu else None
        with self._told(task):
            future = self._client.submit(computed, task, key=key, pure=False, resources=resources)
            future.add_done_callback(finished.put)
        return future

    def _first_of(self, finished: "SimpleQueue[Future]") -> "Future":
        """What is finished first, well or not."""
        while True:
            try:
                return finished.get(timeout=LOOKING)
            except Empty:
                self._workers()

    def _workers(self) -> int:
        """How many may compute, at least one; looked at every other second.

        A cluster that grows with its work has nobody before there is any: that is waited for.
        """
        if not self.is_connected:
            raise self._lost()
        now = time.monotonic()
        if now - self._seen > LOOKING:
            self._seen, self._size = now, len(self._able())
            self._alone = None if self._size else self._alone or now
            if self._alone and now - self._alone > PATIENCE:
                raise StudyError(self._nobody())
        return max(1, self._size)

    def _able(self) -> list[str]:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1).get("workers", {})
        return [
            name
            for name, about in workers.items()
            if not self.gpu or about.get("resources", {}).get("GPU", 0) >= 1
        ]

    def _nobody(self) -> str:
        wanted = " with the resource GPU, because the study's device is cuda" if self.gpu else ""
        options = " --resources GPU=1" if self.gpu else ""
        return (
            f"the Dask cluster at {self.address} has had no worker{wanted} for {PATIENCE:.0f} "
            f"seconds; start some: dask worker {self.address} --nthreads 1{options}"
        )

    @contextmanager
    def _told(self, task: BlockTask) -> Iterator[None]:
        """What is wrong with the cluster is told as that; errors of a task as they are."""
        try:
            yield
        except InfluenceDagError:
            raise
        except _CANCELLED as error:
            raise self._lost() from error
        except Exception as error:
            if any(note.startswith("while computing") for note in getattr(error, "__notes__", ())):
                raise
            if not self.is_connected:
                raise self._lost() from error
            raise InfluenceDagError(
                f"{task}: the Dask cluster at {self.address} has not computed it "
                f"({type(error).__name__}: {error}); where workers end, look whether they run out "
                "of memory (compute.block_bytes)"
            ) from error

    def _lost(self) -> InfluenceDagError:
        return InfluenceDagError(
            f"the Dask scheduler at {self.address} is lost, and with it what was under way; "
            "finished blocks are kept: refresh again, on a cluster or with compute.executor: local"
        )


def computed(task: BlockTask) -> Arrays:
    """What a worker does with a task; its errors say on which machine, which may be another."""
    try:
        return run(task)
    except (StudyError, StoreError) as error:  # of what there is to see where the worker is
        error.args = (f"{error} (so it is for the worker on {socket.gethostname()})",)
        raise
    except Exception as error:
        error.add_note(f"on {socket.gethostname()}")
        raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_cluster(workers: int, gpu: bool) -> "LocalCluster":
    """Processes of this machine that nobody else reaches.

    How much memory blocks take is the study's business, not a share of the machine's for each
    worker, above which Dask would end it.
    """
    _look_for_dask()
    from distributed import LocalCluster

    options: dict[str, Any] = {"dashboard_address": None, "memory_limit": None}
    _import_once()
    options["scheduler_kwargs"] = {"dashboard_address": "127.0.0.1:0"}  # whichever port is free
    options |= {"resources": {"GPU": 1}} if gpu else {}
    try:
        return LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", **options
        )
    except RuntimeError as error:
        raise StudyError(
            f"local Dask workers have not started ({error}); a script that refreshes does so below "
            '`if __name__ == "__main__":`, because each worker imports it'
        ) from error


def _import_once() -> None:
    """Workers, and those that take a lost one's place, are forks of one process that has imported.

    Else each imports torch, for seconds. Elsewhere than on Linux forks of what is loaded may fail,
    and who has chosen another way than Dask's default keeps it.
    """
    import dask.config
    from distributed.utils import get_mp_context

    if sys.platform == "linux" and dask.config.get(METHOD) == "spawn":
        dask.config.set({METHOD: "forkserver"})
        get_mp_context().set_forkserver_preload([*PRELOADED])  # once it has named its own


def _connected(cluster: "LocalCluster | str") -> "Client":
    _look_for_dask()
    from distributed import Client

    try:
        return Client(cluster, timeout=CONNECTING, set_as_default=False)
    except Exception as error:  # of names, sockets, certificates, and what else answers there
        raise StudyError(
            f"no Dask scheduler answers at {cluster} ({type(error).__name__}: {error!s:.200}); "
            "start one (dask scheduler), correct compute.address, or write compute.executor: local"
        ) from error


def _look_for_dask() -> None:
    from importlib.util import find_spec

    if find_spec("distributed") is None:
        raise StudyError(
            "compute.executor is dask, and the package distributed is not installed; install "
            "influence-dag[distributed], or write executor: local"
        )
