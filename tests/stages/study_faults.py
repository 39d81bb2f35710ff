"""Processes that refresh a study and meet a fault at a chosen moment of a chosen artifact.

One process imports everything once and forks for each run. In the fork, Python's audit hooks see
every change of the store (a file opened for writing, renamed, linked, removed), so that a moment is
"the nth change while this artifact is refreshed, and some milliseconds later".
"""

import errno
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import databases

FAULT = "fault while refreshing"
_CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir"}


@dataclass(frozen=True)
class Moment:
    """The `change`-th change of the store while `artifact` is refreshed, and `delay` s later.

    With `below` only changes of files whose path has it in it are counted.
    """

    artifact: str
    change: int
    delay: float = 0.0
    below: str = ""


class Launcher:
    """Runs functions of this module in forks of one process that has imported everything."""

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def start(self, target: Callable[..., None], output: Path, *arguments: Any) -> int:
        """Call a function in a process of its own, whose id is returned; it writes to `output`."""
        return self._ask({"call": target.__name__, "with": arguments, "output": str(output)})

    def end(self, pid: int) -> int:
        """Wait for a process; its exit code, or minus the signal that ended it."""
        return self._ask({"wait": pid})

    def run(self, target: Callable[..., None], output: Path, *arguments: Any) -> int:
        return self.end(self.start(target, output, *arguments))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request, default=asdict), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


# What runs in a fork


def refresh(folder: str) -> None:
    """Every stage in order, told as they are refreshed."""
    from influence_dag.stages.graph import artifacts
    from influence_dag.stages.workbench import Workbench
    from influence_dag.study.loading import load_study

    bench = Workbench(load_study(folder), lambda message: print(message, flush=True))
    for node in artifacts(bench.study):
        node.refresh(bench)


def refresh_at(folder: str, moment: float) -> None:
    """Refresh, beginning at a moment of the system's monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))
    refresh(folder)


def refresh_read_only(folder: str) -> None:
    """Refresh with a store that refuses every change."""
    from influence_dag.study.loading import load_study

    store = load_study(folder).store_address

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_change(event, arguments) and str(arguments[0]).startswith(store):
            raise OSError(errno.EROFS, "Read-only file system")

    sys.addaudithook(refuse)
    refresh(folder)


def count_changes(folder: str, report: str) -> None:
    """`influence-dag materialize`; writes how often each artifact changed the store, in order."""
    from influence_dag.__main__ import main

    seen: Counter[str] = Counter()
    _on_changes(folder, lambda artifact, _: seen.update([artifact]))
    try:
        main(["materialize", folder, "--quiet"])
    finally:
        Path(report).write_text(json.dumps(seen))


def killed_refresh(folder: str, moment: dict) -> None:
    """Refresh, without Dagster, and be killed at a moment."""
    _at(folder, moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
    refresh(folder)


def materialize(folder: str, moment: dict, sign: int, home: str = "") -> None:
    """`influence-dag materialize`, which gets a signal at a moment; recorded in `home`, if any."""
    from influence_dag.__main__ import main

    if home:
        os.environ["DAGSTER_HOME"] = home
    _at(folder, moment, lambda: os.kill(os.getpid(), sign))
    main(["materialize", folder, "--quiet"])


def cancelled_run(folder: str, moment: dict, home: str) -> None:
    """A run as Dagster's server executes it, which is cancelled in the UI at a moment."""
    import dagster as dg
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.execution.api import execute_run_iterator
    from dagster._utils.interrupts import setup_interrupt_handlers

    from influence_dag.components.assets import study_definitions
    from influence_dag.study.loading import load_study

    os.environ["DAGSTER_HOME"] = home
    study = load_study(folder)
    setup_interrupt_handlers()
    with dg.DagsterInstance.get() as instance:
        job = study_definitions(study).resolve_job_def(f"{study.name}_refresh")
        run = instance.create_run_for_job(job)

        def cancel() -> None:
            instance.report_run_canceling(run)
            os.kill(os.getpid(), signal.SIGINT)  # as the server's watching thread does
            time.sleep(0.5)  # on a writer's thread: until the main one has heard of it

        _at(folder, moment, cancel)
        with suppress(KeyboardInterrupt):
            for _ in execute_run_iterator(InMemoryJob(job), run, instance):
                pass


def reexecute(folder: str, home: str) -> None:
    """Re-execute the last run from where it failed, as the UI's button does; says its steps."""
    import dagster as dg
    from dagster._core.definitions.reconstruct import build_reconstructable_job

    os.environ["DAGSTER_HOME"] = home
    job = build_reconstructable_job("study_faults", "job_of", (folder,))
    with dg.DagsterInstance.get() as instance:
        (last,) = instance.get_runs(limit=1)
        options = dg.ReexecutionOptions.from_failure(last.run_id, instance)
        result = dg.execute_job(job, instance, reexecution_options=options, raise_on_error=True)
        print("steps:", *(event.step_key for event in result.get_step_success_events()))


def job_of(folder: str) -> Any:
    """The refresh job of a study, found again by Dagster in another process."""
    from influence_dag.components.assets import study_definitions
    from influence_dag.study.loading import load_study

    study = load_study(folder)
    return study_definitions(study).resolve_job_def(f"{study.name}_refresh")


def _at(folder: str, moment: dict, fault: Callable[[], None]) -> None:
    """Have a fault happen once, at a moment: at once in this thread, or later from another."""
    chosen, seen, current = Moment(**moment), 0, ""

    def strike() -> None:
        print(f"{FAULT} {current}", flush=True)
        fault()

    def count(artifact: str, path: str) -> None:
        nonlocal seen, current
        current = artifact
        seen += artifact == chosen.artifact and chosen.below in path
        if seen == chosen.change and artifact == chosen.artifact:
            seen += 1  # once
            threading.Timer(chosen.delay, strike).start() if chosen.delay else strike()

    _on_changes(folder, count)


def _on_changes(folder: str, act: Callable[[str, str], None]) -> None:
    """Call `act` with the artifact under refresh and the path at every change of the store."""
    from influence_dag.stages.artifacts import Artifact
    from influence_dag.study.loading import load_study

    store, refreshing = load_study(folder).store_address, [""]
    refresh = Artifact.refresh

    def followed(artifact: Artifact, bench: Any) -> Any:
        refreshing[0] = artifact.name
        return refresh(artifact, bench)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_change(event, arguments) and refreshing[0] and str(arguments[0]).startswith(store):
            act(refreshing[0], str(arguments[0]))

    Artifact.refresh = followed
    sys.addaudithook(hook)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audited event opens a file for writing, or changes a folder's entries."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
    return bool(writes) or event in _CHANGES


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        if request["call"] in OF_DAGSTER:
            _import(*DAGSTERS)
            databases.prepare()
        gc.freeze()  # what is imported stays; a fork that looked through it would copy its pages
        if pid := os.fork():
            print(pid, flush=True)
        else:
            _fork(request)


def _fork(request: dict[str, Any]) -> None:
    """Leave only by a signal or through `os._exit`: the parent's loop is not this process's."""
    code = 1
    try:
        descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        globals()[request["call"]](*request["with"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        print(end.code if isinstance(end.code, str) else "", flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)


OF_DAGSTER = {"count_changes", "materialize", "cancelled_run", "reexecute"}
DAGSTERS = (  # what a run of Dagster's imports when it is under way
    "dagster._core.execution.api",
    "dagster._core.executor.in_process",
    "dagster._core.storage.event_log.sqlite",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.workspace.context",
    "dagster._daemon.controller",
    "dask.array",
    "influence_dag.query.plots",
    "influence_dag.query.report.findings",
    "influence_dag.query.report.page",
    "matplotlib.backends.backend_agg",
    "rich.console",
    "scipy.stats",
)


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 10)  # as the tests' own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import(
        "influence_dag.__main__",
        "influence_dag.running",
        "influence_dag.components",
        "influence_dag.components.console",
        "influence_dag.components.metadata",
        *(
            f"influence_dag.stages.{stage}"
            for stage in (
                *("checks", "dataset", "model", "gradients", "matrices", "curvature", "factors"),
                *("influences", "perturbation", "summary", "report"),
            )
        ),
        "torch._dynamo",  # as the first use of torch.func would
        "torch.fx.experimental.symbolic_shapes",
    )
    _serve()
