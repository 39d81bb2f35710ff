"""A Ctrl-C between two steps of a thread, at a chosen one of them."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType

HANGS = 20.0  # seconds


def interrupted_at(step: int, work: Callable[[], object], watched: Callable[[CodeType], bool]):
    """Run `work` with a Ctrl-C at the n-th line or return of what is watched; False beyond all."""
    seen = 0

    def steps(frame, event, argument):
        nonlocal seen
        seen += event in ("line", "return")
        if event in ("line", "return") and seen == step:
            raise KeyboardInterrupt
        return steps

    def calls(frame, event, argument):
        return steps if seen < step and watched(frame.f_code) else None

    sys.settrace(calls)
    try:
        work()
    except BaseException:  # what fails in the course of an interrupt may hide it
        if seen < step:
            raise
        return True
    finally:
        sys.settrace(None)
    return False


def each_interruption(
    work: Callable[[], object], watched: Callable[[CodeType], bool]
) -> Iterator[int]:
    """Interrupt it at its first step, then anew at its second …; each has to come to its end."""
    for step in itertools.count(1):
        ended, outcome = threading.Event(), list[bool]()

        def run(step=step, ended=ended, outcome=outcome):
            outcome.append(interrupted_at(step, work, watched))
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        assert ended.wait(HANGS), f"interrupted at step {step}, it hangs"
        if not outcome[0]:
            return
        yield step
