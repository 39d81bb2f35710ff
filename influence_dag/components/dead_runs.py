"""Recorded runs of the command line, which nobody watches, are known to be alive or dead.

Dagster's server watches the runs that it has started. One of `influence-dag materialize` is its own
process; killed, it would be shown as running for ever. So it holds a lock on a file while it
lives, which the system takes from it however it ends, and the next one looks.
"""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg

from influence_dag.errors import StoreError
from influence_dag.store.posix.locks import NoLocksError, locked

_GONE = (
    "The process of this run ended without a word: killed, out of memory, or the machine stopped. "
    "What it had stored is complete; the next run goes on from its last finished block."
)


@contextmanager
def known_alive(instance: dg.DagsterInstance) -> Iterator[str]:
    """The id for a run of this process, known to be alive until the block ends.

    Runs of processes that are no longer there are reported as failed first.
    """
    run_id = str(uuid.uuid4())
    if instance.is_ephemeral:  # nobody else will look
        yield run_id
        return
    report_dead_runs(instance)
    folder = _folder(instance)
    with ExitStack() as held:
        with suppress(NoLocksError):  # then nobody can tell that it lives, nor that it died
            held.enter_context(locked(folder / run_id, timeout=10))
        try:
            yield run_id
        finally:
            (folder / run_id).unlink(missing_ok=True)


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "influence_dag_runs"


def report_dead_runs(instance: dg.DagsterInstance) -> None:
    """Report runs as failed whose process is not there any more."""
    for path in _folder(instance).glob("*"):
        with suppress(StoreError), locked(path, timeout=0):  # a StoreError: held, so it lives
            run = instance.get_run_by_id(path.name)
            if run and not run.is_finished:
                instance.report_run_failed(run, _GONE)
            path.unlink(missing_ok=True)
