"""Processes that fail at a chosen operation on the file system.

Python reports every file it is about to open for writing, rename, link, remove or create to audit
hooks, so counting these visits each point between two changes of the store. Hooks cannot be
removed: they live in processes of their own.
"""

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from stored_sample import Sample, refresh, refresh_with_results

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore

_IMPORTED = os.getpid(), frozenset(sys.modules)  # by the process that forks
Fault = Callable[[str], None]

_CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir"}
_GROWS = {"open", "os.link", "os.symlink", "os.mkdir"}

_context = multiprocessing.get_context("forkserver")
_server: Any = forkserver._forkserver  # of which a process has one: Dask's workers come from it too
_served: set[Any] = set()  # its pid, once it is ours


class Outcome(NamedTuple):
    exit_code: int
    error: str


class Running(NamedTuple):
    process: BaseProcess
    report: Any
    stacks: Path

    def end_by(self, sign: int) -> Outcome:
        """Send a signal every second until it is heard, as a person would.

        Python drops an interrupt that falls into one of its own callbacks (of weak references).
        """
        until = time.monotonic() + 60
        while self.process.is_alive() and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.process.pid or 0, sign)
            self.process.join(1)
        return self.end()

    def end(self) -> Outcome:
        self.process.join(60)
        if self.process.exitcode is None:
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            time.sleep(1)
            self.process.kill()
            raise AssertionError(f"the process hangs\n{self.stacks.read_text()}")
        self.stacks.unlink()
        error = self.report.recv() if self.process.exitcode == 3 else ""
        return Outcome(self.process.exitcode, error)


def start(target: Callable[..., None], *arguments: Any) -> Running:
    """Run a function in a process of its own, begun; a `StoreError` in it is exit code 3."""
    _serve()
    receiver, sender = _context.Pipe(duplex=False)
    stacks = Path(tempfile.mkstemp()[1])
    process = _context.Process(target=_report, args=(sender, stacks, target, *arguments))
    process.start()
    receiver.recv()  # before, signals would meet the handlers of the process that forks
    return Running(process, receiver, stacks)


def refresh_with(fault: Fault, at: int, root: Path, sample: Sample) -> None:
    """Refresh; every change of the file system from the `at`-th on meets the fault."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(root)):
            seen += 1
            if seen >= at:
                fault(event)

    sys.addaudithook(hook)
    refresh_with_results(ArtifactStore(root), sample)


def kill(event: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(event: str) -> None:
    if event in _GROWS:
        raise OSError(errno.ENOSPC, "No space left on device")


def refresh_waiting(root: Path, sample: Sample) -> None:
    """Refresh, waiting for others that do the same."""
    refresh(ArtifactStore(root, lock_timeout=30), sample)


def refresh_with_small_files(root: Path, sample: Sample, limit: int) -> None:
    """Refresh under a limit on the size of files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    refresh(ArtifactStore(root), sample)


def refresh_unprivileged(root: Path, sample: Sample) -> None:
    """Refresh as a user who may read the store but not write to it."""
    store = ArtifactStore(root)
    store.version("direct/influences").open()  # imports what that user may not be able to read
    os.setuid(65534)
    assert store.version("direct/influences").open().influences.notnull().all()
    refresh(store, sample)


def refresh_forever(root: Path, samples: list[Sample]) -> None:
    """Refresh with one sample after the other until something ends the process."""
    while True:
        for sample in samples:
            refresh(ArtifactStore(root), sample)


def refresh_telling_imports(root: Path, sample: Sample, said: Path) -> None:
    """Refresh, and write down what this process had to import itself."""
    refresh_with_results(ArtifactStore(root), sample)
    importer, before = _IMPORTED
    own = sys.modules if importer == os.getpid() else sys.modules.keys() - before
    said.write_text(" ".join(sorted({name.partition(".")[0] for name in own})))


def hold_lock(root: Path, sample: Sample, seconds: float) -> None:
    with ArtifactStore(root).new_version("direct/influences", sample.layout):
        time.sleep(seconds)


def _serve() -> None:
    """Have the process that forks, with this one's path: Python 3.11 does not hand it on itself,
    and what cannot be imported beforehand is imported by each process anew, without a word.
    """
    if _server._forkserver_pid in _served:
        return
    if _server._forkserver_pid is not None:
        _server._stop()
    _context.set_forkserver_preload(["faults", "multiprocessing.synchronize"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    _served.add(_server._forkserver_pid)


def _report(sender: Any, stacks: Path, target: Callable[..., None], *arguments: Any) -> None:
    faulthandler.register(signal.SIGUSR1, file=stacks.open("w"), all_threads=True)
    # Also where a shell had interrupts ignored, and Dagster with them SIGTERM.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender.send("begun")
    try:
        target(*arguments)
    except StoreError as error:
        sender.send(str(error))
        sys.exit(3)
