"""Writes that threads have begun, for those who have to wait for their end."""

import threading
from collections import Counter


class UnderWay:
    """How many writes each thread is at; `lock` guards it and may guard more.

    An interrupt can fall between any two steps of the thread that it comes to, also after a write
    was counted and before anything would count it off again. That thread is the one that then
    closes what it was writing: of itself it knows that it writes no more, and waits for others.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._ended = threading.Condition(self.lock)
        self._counts: Counter[int] = Counter()

    def begin(self) -> None:
        with self.lock:
            self._counts[threading.get_ident()] += 1

    def end(self) -> None:
        with self.lock:
            self._counts[threading.get_ident()] -= 1
            self._ended.notify_all()

    def others(self) -> bool:
        """Whether another thread is at one; for who holds the lock."""
        me = threading.get_ident()
        return any(count for thread, count in self._counts.items() if thread != me)

    def wait(self) -> None:
        """For the end of one; for who holds the lock, which is given away meanwhile."""
        self._ended.wait()
