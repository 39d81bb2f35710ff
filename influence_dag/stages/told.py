"""How far the blocks of an artifact are, in the run's log: a line about every twentieth."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

Done = TypeVar("Done")
SHARE = 0.05  # of the blocks between two lines
PATIENCE = 2.0  # seconds at least between two lines: short work is told by its end alone


def told(
    results: Generator[Done, None, None],
    total: int,
    what: str,
    report: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Done, None, None]:
    """The results as they come; lines like `influences: 35 % of 1,200 blocks, 14/s, 56 s left`.

    Nothing that was handed on is kept. `results` is closed with it.
    """
    started = last = clock()
    done = shown = 0
    with closing(results):
        while (result := next(results, None)) is not None:
            yield result
            del result
            now, done = clock(), done + 1
            if done < total and done - shown >= SHARE * total and now - last >= PATIENCE:
                report(line(what, done, total, now - started))
                shown, last = done, now


def line(what: str, done: int, total: int, seconds: float) -> str:
    """One of these lines.

    >>> line("influences", 420, 1200, 30.0)
    'influences: 35 % of 1,200 blocks, 14/s, 56 s left'
    >>> line("gradients", 1, 20, 90.0)
    'gradients: 5 % of 20 blocks, 90 s each, 28 min left'
    """
    rate, left = done / seconds, seconds * (total - done) / done
    speed = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    share = f"{100 * done / total:.0f} %"
    return f"{what}: {share} of {total:,} blocks, {speed}, {_duration(left)} left"


def _duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
