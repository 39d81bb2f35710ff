"""Waiting for what Icechunk does, from any thread: also from Zarr's, where Zarr cannot wait."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from influence_dag.errors import StoreError

T = TypeVar("T")


def waited(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run on a loop of our own."""
    return asyncio.run_coroutine_threadsafe(work, _loop(os.getpid())).result()


@lru_cache(maxsize=1)
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """One a process: a forked one has no thread that runs its parent's."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="icechunk", daemon=True).start()
    return loop


_used: dict[str, int] = {}  # by which process


def check_process(address: str) -> None:
    """A `StoreError` in a forked process, which would wait for ever for threads of its parent's."""
    if _used.setdefault("process", os.getpid()) != os.getpid():
        raise StoreError(
            f"{address}: this process was forked from one that had Icechunk open, and lacks the "
            "threads by which it reads; start it anew (multiprocessing: 'spawn' or 'forkserver')"
        )
