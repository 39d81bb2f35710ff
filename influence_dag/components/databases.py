"""Dagster's SQLite databases, kept open while this process records a run or looks at one.

Dagster makes an engine for each event that it stores or asks for, and closes its connection behind
it. Each engine compiles its statements anew; and SQLite, when nobody has a database open any more,
writes its log back, syncs file and folder and removes it: a run of the digits study waits for the
disk 1,760 times. What is stored, and what other processes see of it meanwhile, are the same. Where
the machine stops, the last events may be missing, as if the run had been killed before them.
"""

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

STORAGES = tuple(
    f"dagster._core.storage.{name}"
    for name in (
        "event_log.sqlite.sqlite_event_log",
        "runs.sqlite.sqlite_run_storage",
        "schedules.sqlite.sqlite_schedule_storage",
    )
)
_NAME = "create_engine"  # under which each of them has the function


@contextmanager
def kept_open() -> Iterator[None]:
    """One engine for each database, with its connection, until the last such block ends.

    It is Dagster's own code that this changes in this process: a version of it that makes its
    engines elsewhere is left as it is.
    """
    global _inside, _kept
    with _changing:
        if not _inside:
            _kept = _all_kept()
        _inside += 1
    try:
        yield
    finally:
        with _changing:
            _inside -= 1
            if not _inside:
                _kept.close()


_inside, _kept, _changing = 0, ExitStack(), threading.Lock()  # of all threads


def _all_kept() -> ExitStack:
    """What is to be closed so that Dagster makes its engines itself again."""
    with ExitStack() as stack:
        for name in STORAGES:
            module = importlib.import_module(name)
            if hasattr(module, _NAME):
                stack.enter_context(_engines_kept(module))
        return stack.pop_all()


@contextmanager
def _engines_kept(module: ModuleType) -> Iterator[None]:
    create, engines = getattr(module, _NAME), {}
    setattr(module, _NAME, _made_once(create, engines))
    try:
        yield
    finally:
        setattr(module, _NAME, create)
        for engine in engines.values():
            QueuePool.dispose(engine.pool)


def _made_once(
    create: Callable[..., Engine], engines: dict[tuple[str, str], Engine]
) -> Callable[..., Engine]:
    def made(address: str, **options: Any) -> Engine:
        key = address, repr(sorted(options.items(), key=lambda item: item[0]))
        if key not in engines:
            engines[key] = create(address, **options | {"poolclass": _Kept})
            event.listen(engines[key], "connect", _sync_seldom)
        return engines[key]

    return made


def _sync_seldom(connection: Any, _: Any) -> None:
    """Sync the log when it is written back, not at each commit: it is whole at any time."""
    connection.execute("PRAGMA synchronous = NORMAL")


class _Kept(QueuePool):
    """Keeps its connection when the engine is disposed of, as Dagster does after each event."""

    def dispose(self) -> None:
        pass

    def recreate(self) -> QueuePool:
        return self
