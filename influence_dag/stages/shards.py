"""Blocks computed by the processes of an array job, which know each other by a folder alone.

Shard 1 of n drives: it plans, locks, writes and publishes, as one process does, and computes the
first of every n blocks itself. Which blocks there are it writes into a folder of the project, where
the others find theirs, the i-th of every n, compute them and leave their arrays. They may come
and go: what they left stays for the next run, and what is missing is theirs again.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.files import content_of, write_atomically
from influence_dag.stages.exchange import Exchange, Shard, name_of, packed, unpacked
from influence_dag.stages.tasks import BlockTask, Results, run
from influence_dag.store.posix.locks import locked_anywhere
from influence_dag.store.threads import repeated
from influence_dag.study.study import Study

PATIENCE = 600.0  # seconds without a sign of a shard that has blocks left
DRIVEN = 10.0  # for which another first one may be ending
BEAT = 5.0
POLL = 0.2


class ShardExecutor:
    """What shard 1 computes blocks with: its own in this process, others' as they are left.

    A shard that has blocks left and gives no sign for `patience` seconds is named in an error;
    finished blocks are kept.
    """

    def __init__(self, shard: Shard, exchange: Exchange, *, patience: float = PATIENCE) -> None:
        self.shard, self.exchange, self.patience = shard, exchange, patience

    def run(self, tasks: Iterable[BlockTask], /) -> Results:
        wanted = list(tasks)
        if not wanted:
            return
        folder = self.exchange.plan(wanted, self.shard)
        waiting = {name_of(task): task for task in wanted}
        owner = {name_of(task): k % self.shard.of + 1 for k, task in enumerate(wanted)}
        own = (name for name, number in owner.items() if number == 1 and name in waiting)
        signs = _Signs(self.exchange, self.patience)
        try:
            while waiting:
                for name in self._next(folder, waiting, own, owner, signs):
                    task = waiting.pop(name)
                    yield task, unpacked(content_of(folder / f"{name}.arrays")) or run(task)
                    (folder / f"{name}.arrays").unlink(missing_ok=True)
        finally:
            (folder / "plan").unlink(missing_ok=True)

    def _next(
        self,
        folder: Path,
        waiting: dict[str, BlockTask],
        own: Iterator[str],
        owner: dict[str, int],
        signs: "_Signs",
    ) -> list[str]:
        """All that others have left, else one of this one's own, else what is left next.

        The folder is looked through once for all that is there, not once a block.
        """
        while True:
            there = [path.stem for path in folder.glob("*.arrays") if path.stem in waiting]
            if found := there or [*islice(own, 1)]:
                return found
            for path in folder.glob("*.error"):
                if error := unpacked(content_of(path)):
                    raise error
            signs.look({owner[name] for name in waiting}, self.shard)
            time.sleep(POLL)


class _Signs:
    """When each shard was last heard of, by this process's clock."""

    def __init__(self, exchange: Exchange, patience: float) -> None:
        self.exchange, self.patience = exchange, patience
        self._seen: dict[int, tuple[float, float]] = {}

    def look(self, numbers: set[int], shard: Shard) -> None:
        if silent := sorted(filter(self.is_silent, numbers)):
            named = ", ".join(map(str, silent))
            raise InfluenceDagError(
                f"shard {named} of {shard.of} has blocks to compute and gave no sign for "
                f"{self.patience:g} s; what is finished is kept. Start "
                f"{' and '.join(f'--shard {number}/{shard.of}' for number in silent)} and shard "
                f"{shard} again, or go on without --shard"
            )

    def is_silent(self, number: int) -> bool:
        beat, now = self.exchange.sign_of(number), time.monotonic()
        if number not in self._seen or self._seen[number][0] != beat:
            self._seen[number] = beat, now
        return now - self._seen[number][1] > self.patience


@contextmanager
def driving(shard: Shard, study: Study, patience: float = PATIENCE) -> Iterator[ShardExecutor]:
    """Inside, the first shard hands out blocks; the others end when it does."""
    exchange = Exchange(study)
    exchange.enter()
    with locked_anywhere(
        exchange.folder / ".lock",
        timeout=DRIVEN,
        told=f"the plans of {study.name}'s shards ({exchange.folder})",
        cure="Try again when it is done: one --shard 1/n at a time drives",
    ):
        exchange.begin()
        try:
            yield ShardExecutor(shard, exchange, patience=patience)
        except BaseException as error:
            exchange.end(error if str(error) else InterruptedError("interrupted"))
            raise
        exchange.end(None)


def compute_share(study: Study, shard: Shard, *, patience: float = PATIENCE) -> int:
    """What a shard but the first does: its blocks, until the first has ended; how many they were.

    Raises the error of a block that cannot be computed, and `InfluenceDagError` where nothing was
    asked for `patience` seconds or the first shard ended with an error.
    """
    exchange, done = Exchange(study), 0
    exchange.enter()
    last, seen = time.monotonic(), set[tuple[str, int]]()
    with beating(study, shard.number):
        began = exchange.sign_of(shard.number)
        while True:
            for folder, of, plan, tasks in exchange.plans():
                own = {k for k in range(len(tasks)) if shard.owns(k)} - {
                    k for name, k in seen if name == plan
                }
                count = _compute_own(folder, of, {k: tasks[k] for k in sorted(own)}, shard)
                seen |= {(plan, k) for k in own}  # what was taken meanwhile is not asked for again
                done, last = done + count, time.monotonic() if count else last
            waited = time.monotonic() - last > patience
            if _is_over(exchange, shard, began, waited=waited):
                return done
            if waited and not _is_driven(exchange, shard):
                raise InfluenceDagError(
                    f"shard {shard}: no block was asked for in {patience:g} s, and shard 1 is not "
                    f"there; start --shard 1/{shard.of}, which plans and publishes. What this one "
                    f"computed ({done} blocks) is kept for it"
                )
            time.sleep(POLL)


def _is_over(exchange: Exchange, shard: Shard, began: float, *, waited: bool) -> bool:
    """Whether the first has ended: since this one began, or before, if nobody else begins."""
    ended = exchange.ended()
    if ended is None or (ended[0] < began and not waited):
        return False
    if ended[1]:
        raise InfluenceDagError(f"shard {shard}: shard 1 ended with: {ended[1]}")
    return True


def _is_driven(exchange: Exchange, shard: Shard) -> bool:
    """Whether a first shard is at work: it plans, or makes what is not cut into blocks."""
    return exchange.sign_of(1) > exchange.sign_of(shard.number) - 10 * BEAT


def _compute_own(folder: Path, of: int, tasks: dict[int, BlockTask], shard: Shard) -> int:
    if of != shard.of:
        raise StudyError(
            f"shard {shard}: shard 1 shares its blocks among {of}; start all with the same number"
        )
    count = 0
    for task in tasks.values():
        path = folder / f"{name_of(task)}.arrays"
        if path.exists():
            continue
        if not (folder / "plan").exists():  # called off, or done
            return count
        try:
            arrays = run(task)
        except Exception as error:
            error.add_note(f"on {socket.gethostname()}, shard {shard}")
            _leave(path.with_suffix(".error"), error)
            raise
        _leave(path, arrays)
        count += 1
    return count


def _leave(path: Path, value: Any) -> None:
    with suppress(FileNotFoundError):  # the first shard has ended meanwhile
        write_atomically(path, packed(value))


@contextmanager
def beating(study: Study, number: int) -> Iterator[None]:
    """Inside, the file that says a shard is alive is touched every few seconds."""
    path = Exchange(study).alive(number)

    def beat() -> None:
        with suppress(OSError):
            path.write_text(f"{socket.gethostname()} {os.getpid()} {time.time()}")

    beat()
    with repeated(beat, BEAT):
        yield
