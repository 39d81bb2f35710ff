"""Threads that do what they are given, and whose end is told however often they are interrupted.

An interrupt comes to the main thread between any two of its steps. What `threading` and
`concurrent.futures` share with the threads that they start is guarded by locks that it can leave
taken (a `Condition` is entered in two steps), after which no end is ever told and whoever waits for
it hangs. Here the main thread starts threads and hands over in single steps, and holds no lock.
"""

import os
import threading
import time
from _thread import start_new_thread
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple

Item = TypeVar("Item")
Arguments = TypeVarTuple("Arguments")
POLL_SECONDS = 1e-3  # between looks at whether others still write


class Workers(Generic[*Arguments]):
    """`act` is called by one of a few threads with each arguments given.

    Whoever leaves the `with` block has waited for what was given, unless interrupted again.
    """

    def __init__(self, act: Callable[[*Arguments], object], threads: int) -> None:
        self._act, self._threads = act, threads
        self._given: SimpleQueue[tuple[*Arguments] | None] = SimpleQueue()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self._left: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> "Workers[*Arguments]":
        try:
            for _ in range(self._threads):
                start_new_thread(self._work, ())
        except BaseException:
            self._dismiss()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._dismiss()
        for _ in range(self._threads):
            self._left.get()

    def give(self, *arguments: *Arguments) -> None:
        self._given.put(arguments)

    @property
    def has_ended(self) -> bool:
        """Whether an end waits to be asked for."""
        return not self._ended.empty()

    def end(self) -> None:
        """Wait for the end of one call; its error is raised, and what has not begun is dropped."""
        if error := self._ended.get():
            self.drop()
            raise error

    def drop(self) -> None:
        """Forget what was given and has not begun."""
        with suppress(Empty):
            while True:
                self._given.get_nowait()

    def _dismiss(self) -> None:
        for _ in range(self._threads):
            self._given.put(None)

    def _work(self) -> None:
        while (arguments := self._given.get()) is not None:
            self._ended.put(_error(self._act, arguments))
            del arguments  # or they would exist until the next ones come
        self._left.put(None)


def _error(act: Callable[..., object], arguments: tuple[Any, ...]) -> BaseException | None:
    try:
        act(*arguments)
    except BaseException as error:
        return error
    return None


def each_by_threads(act: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Call it with every item, several at once; the first error is raised."""
    given = list(items)
    with Workers(act, min(threads, len(given))) as workers:
        try:
            for item in given:
                workers.give(item)
            for _ in given:
                workers.end()
        except BaseException:
            workers.drop()
            raise


@contextmanager
def repeated(act: Callable[[], object], seconds: float) -> Iterator[None]:
    """Inside, a thread calls it every so many seconds; afterwards it is not under way.

    A forked child has no such thread, and waits for none.
    """
    process = os.getpid()
    ended: SimpleQueue[None] = SimpleQueue()
    left: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        try:
            while _is_empty_for(seconds, ended):
                act()
        finally:
            left.put(None)

    start_new_thread(work, ())
    try:
        yield
    finally:
        if os.getpid() == process:
            ended.put(None)
            left.get()


def _is_empty_for(seconds: float, queue: SimpleQueue[None]) -> bool:
    try:
        queue.get(timeout=seconds)
    except Empty:
        return True
    return False


class UnderWay:
    """How many writes each thread is at; `lock` guards it and may guard more.

    An interrupt can fall between any two steps of the thread that it comes to, also after a write
    was counted and before anything would count it off again. That thread is the one that then
    closes what it was writing: of itself it knows that it writes no more, and waits for others. It
    looks again and again, since an interrupted wait for a `Condition` can leave its lock to nobody.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._counts: Counter[int] = Counter()

    def begin(self) -> None:
        with self.lock:
            self._counts[threading.get_ident()] += 1

    def end(self) -> None:
        with self.lock:
            self._counts[threading.get_ident()] -= 1

    def others(self) -> bool:
        """Whether another thread is at one."""
        me = threading.get_ident()
        with self.lock:
            return any(count for thread, count in self._counts.items() if thread != me)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock at a moment when no other thread is at a write."""
        while True:
            with self.lock:
                if not self.others():
                    yield
                    return
            time.sleep(POLL_SECONDS)
