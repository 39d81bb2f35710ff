"""Blocks computed by the processes of an array job, which know each other by a folder alone.

Shard 1 of n drives: it plans, locks, writes and publishes, as one process does, and computes the
first of every n blocks itself. Which blocks there are it writes into a folder of the project, where
the others find theirs, the i-th of every n, compute them and leave their arrays. They may come
and go: what they left stays for the next run, and what is missing is theirs again.

<project>/.influence_dag/shards/<study>/
    shard-2.alive           touched while shard 2 runs
    ended                   shard 1 has ended: well, or with an error
    <artifact>/plan         the tasks that are to be computed now
    <artifact>/….arrays     what came of one
    <artifact>/….error      why nothing did
"""

import hashlib
import os
import pickle
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_dag.addresses import scheme_of
from influence_dag.errors import InfluenceDagError, StudyError
from influence_dag.files import content_of, explained, write_atomically
from influence_dag.stages.tasks import BlockTask, Results, run
from influence_dag.study.study import Study

PATIENCE = 600.0  # seconds without a sign of a shard that has blocks left
BEAT = 5.0
POLL = 0.2

Report = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """The number of a process among those that share the work; the first one drives."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Of `2/8`.

        >>> Shard.parse("2/8")
        Shard(number=2, of=8)
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise StudyError(
                f"shard is {text!r}; write i/n with i from 1 to n, such as 2/8 (of an array job: "
                "--array=1-8 and --shard $SLURM_ARRAY_TASK_ID/8)"
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def drives(self) -> bool:
        return self.number == 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def owns(self, position: int) -> bool:
        """Whether the task at this position of a plan is this one's."""
        return position % self.of == self.number - 1


class Exchange:
    """The folder by which the shards of a study know of each other."""

    def __init__(self, study: Study) -> None:
        if study.settings.compute.executor != "local":
            raise StudyError(
                f"{study.name}: compute.executor is {study.settings.compute.executor}, and --shard "
                "says that shards compute; write executor: local, or leave out --shard"
            )
        if scheme_of(study.store_address) == "memory":
            raise StudyError(
                f"{study.name}: {study.store_address} is in the memory of one process, which other "
                "shards do not see; keep the study in a folder or a bucket (`store.path`)"
            )
        self.folder = study.root / ".influence_dag" / "shards" / study.name

    def _of(self, artifact: str) -> Path:
        return self.folder / artifact.replace("/", "~")

    # What the first says

    def begin(self) -> None:
        with explained(self.folder, "sharing blocks in"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder.parents[1] / ".gitignore", b"*\n")
        for path in [self.folder / "ended", *self.folder.glob("*/plan"), *self._errors()]:
            path.unlink(missing_ok=True)

    def _errors(self) -> list[Path]:
        return list(self.folder.glob("*/*.error"))

    def plan(self, tasks: list[BlockTask], shard: Shard) -> Path:
        path = self._of(tasks[0].artifact)
        path.mkdir(exist_ok=True)
        for old in set(path.iterdir()) - {path / f"{name_of(task)}.arrays" for task in tasks}:
            old.unlink(missing_ok=True)  # of another age
        write_atomically(path / "plan", pickle.dumps((shard.of, tasks)))
        return path

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes; what was left is of no use where all is published."""
        if error is None:
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
        write_atomically(self.folder / "ended", b"" if error is None else str(error).encode())

    # What the others see

    def plans(self) -> Iterator[tuple[Path, int, list[BlockTask]]]:
        for path in sorted(self.folder.glob("*/plan")):
            with suppress(FileNotFoundError):
                of, tasks = pickle.loads(path.read_bytes())
                yield path.parent, of, tasks

    def ended(self) -> tuple[float, str] | None:
        """When, and with which error."""
        with suppress(FileNotFoundError):
            path = self.folder / "ended"
            return path.stat().st_mtime, path.read_text()
        return None

    def alive(self, number: int) -> Path:
        return self.folder / f"shard-{number}.alive"


def name_of(task: BlockTask) -> str:
    """What stands for a task, wherever it is computed: what it reads, by what, and which tile."""
    return hashlib.blake2b(repr(task).encode(), digest_size=16).hexdigest()


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
        signs = _Signs(self.exchange, self.patience)
        try:
            while waiting:
                name = self._next(folder, waiting, owner, signs)
                task = waiting.pop(name)
                left = content_of(folder / f"{name}.arrays")
                yield task, run(task) if left is None else pickle.loads(left)
                (folder / f"{name}.arrays").unlink(missing_ok=True)
        finally:
            (folder / "plan").unlink(missing_ok=True)

    def _next(
        self,
        folder: Path,
        waiting: dict[str, BlockTask],
        owner: dict[str, int],
        signs: "_Signs",
    ) -> str:
        """What another has left, else what is this one's own, else the next that is left."""
        while True:
            there = {path.stem for path in folder.glob("*.arrays")}
            if found := next((name for name in waiting if name in there), None):
                return found
            if own := next((name for name in waiting if owner[name] == 1), None):
                return own
            for path in folder.glob("*.error"):
                raise pickle.loads(path.read_bytes())
            signs.look({owner[name] for name in waiting}, self.shard)
            time.sleep(POLL)


class _Signs:
    """When each shard was last heard of, by this process's clock."""

    def __init__(self, exchange: Exchange, patience: float) -> None:
        self.exchange, self.patience = exchange, patience
        self._seen: dict[int, tuple[float | None, float]] = {}

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
        beat, now = None, time.monotonic()
        with suppress(FileNotFoundError):
            beat = self.exchange.alive(number).stat().st_mtime
        if number not in self._seen or self._seen[number][0] != beat:
            self._seen[number] = beat, now
        return now - self._seen[number][1] > self.patience


@contextmanager
def driving(shard: Shard, study: Study, patience: float = PATIENCE) -> Iterator[ShardExecutor]:
    """Inside, the first shard hands out blocks; the others end when it does."""
    exchange = Exchange(study)
    exchange.begin()
    try:
        yield ShardExecutor(shard, exchange, patience=patience)
    except BaseException as error:
        exchange.end(error if str(error) else InterruptedError("interrupted"))
        raise
    exchange.end(None)


def compute_share(
    study: Study, shard: Shard, *, report: Report = lambda message: None, patience: float = PATIENCE
) -> int:
    """What a shard but the first does: its blocks, until the first has ended; how many they were.

    Raises the error of a block that cannot be computed, and `InfluenceDagError` where nothing was
    asked for `patience` seconds or the first shard ended with an error.
    """
    exchange, began, done = Exchange(study), time.time(), 0
    exchange.folder.mkdir(parents=True, exist_ok=True)
    last = time.monotonic()
    with _beating(exchange.alive(shard.number)):
        while True:
            for folder, of, tasks in exchange.plans():
                count = _compute_own(folder, of, tasks, shard)
                done, last = done + count, time.monotonic() if count else last
            ended = exchange.ended()
            if ended and (ended[0] >= began or time.monotonic() - last > patience):
                if ended[1]:
                    raise InfluenceDagError(f"shard {shard}: shard 1 ended with: {ended[1]}")
                report(f"shard {shard}: {done} blocks computed")
                return done
            if not ended and time.monotonic() - last > patience and not _is_driven(exchange):
                raise InfluenceDagError(
                    f"shard {shard}: no block was asked for in {patience:g} s, and shard 1 is not "
                    f"there; start --shard 1/{shard.of}, which plans and publishes. What this one "
                    f"computed ({done} blocks) is kept for it"
                )
            time.sleep(POLL)


def _is_driven(exchange: Exchange) -> bool:
    """Whether a first shard is at work: it plans, or makes what is not cut into blocks."""
    with suppress(FileNotFoundError):
        return time.time() - exchange.alive(1).stat().st_mtime < 10 * BEAT
    return False


def _compute_own(folder: Path, of: int, tasks: list[BlockTask], shard: Shard) -> int:
    if of != shard.of:
        raise StudyError(
            f"shard {shard}: shard 1 shares its blocks among {of}; start all with the same number"
        )
    count = 0
    for position, task in enumerate(tasks):
        path = folder / f"{name_of(task)}.arrays"
        if not shard.owns(position) or path.exists():
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
        write_atomically(path, pickle.dumps(value))


@contextmanager
def beating(study: Study, number: int) -> Iterator[None]:
    with _beating(Exchange(study).alive(number)):
        yield


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Inside, the file is touched every few seconds."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):
                path.write_text(f"{socket.gethostname()} {os.getpid()} {time.time()}")
            if ended.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
