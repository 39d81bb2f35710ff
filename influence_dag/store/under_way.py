"""Writes that threads have begun, for those who have to wait for their end."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

POLL_SECONDS = 1e-3


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
