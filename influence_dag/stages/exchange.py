"""The folder by which the processes of an array job know of each other: plans, arrays, signs.

<project>/.influence_dag/shards/<study>-<hash of its `store`>/
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
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_dag.addresses import scheme_of
from influence_dag.errors import StudyError
from influence_dag.files import explained, write_atomically
from influence_dag.fingerprints import fingerprint
from influence_dag.stages.tasks import BlockTask
from influence_dag.store.arrays import crc32c
from influence_dag.study.study import Study
from influence_dag.texts import encodable

_CHECKSUM_BYTES = 4


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
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise StudyError(
                f"shard is {text!r}; write i/n with i from 1 to n, such as 2/8 (of an array job: "
                "--array=1-8 and --shard $SLURM_ARRAY_TASK_ID/8)"
            )
        return cls(int(match[1]), int(match[2]))

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
        name = f"{study.name}-{fingerprint(study.settings.store.path):.8}"
        self.folder = study.root / ".influence_dag" / "shards" / name

    def _of(self, artifact: str) -> Path:
        return self.folder / artifact.replace("/", "~")

    def enter(self) -> None:
        """Make the folder one's own, where tasks and arrays are pickles: nobody else writes there.

        Raises `StudyError` where it is another user's.
        """
        with explained(self.folder, "sharing blocks in"):
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = self.folder.stat().st_uid
            if owner != os.geteuid():
                raise StudyError(
                    f"{self.folder} is user {owner}'s, and this is user {os.geteuid()}; shards of "
                    "one user share a study: remove the folder, or work on a copy of the project"
                )
            self.folder.chmod(0o700)

    # What the first says

    def begin(self) -> None:
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
        write_atomically(path / "plan", packed((shard.of, uuid.uuid4().hex, tasks)))
        return path

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes; what was left is of no use where all is published."""
        if error is None:
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
        said = "" if error is None else encodable(str(error))
        write_atomically(self.folder / "ended", said.encode())

    # What the others see

    def plans(self) -> Iterator[tuple[Path, int, str, list[BlockTask]]]:
        """Where arrays go, among how many tasks are shared, which plan it is, and its tasks."""
        for path in sorted(self.folder.glob("*/plan")):
            with suppress(FileNotFoundError):
                if plan := unpacked(path.read_bytes()):
                    yield path.parent, *plan

    def ended(self) -> tuple[float, str] | None:
        """When, and with which error."""
        with suppress(FileNotFoundError):
            path = self.folder / "ended"
            return path.stat().st_mtime, path.read_text("utf-8")
        return None

    def alive(self, number: int) -> Path:
        return self.folder / f"shard-{number}.alive"

    def sign_of(self, number: int) -> float:
        """When a shard was last heard of, by the clock of the folder's disk; 0 if it never was."""
        with suppress(FileNotFoundError):
            return self.alive(number).stat().st_mtime
        return 0.0


def packed(value: Any) -> bytes:
    """A value as it is left in the folder, behind its checksum."""
    content = pickle.dumps(value)
    return crc32c(content).to_bytes(_CHECKSUM_BYTES, "big") + content


def unpacked(left: bytes | None) -> Any:
    """What was `packed`, in the folder that is this user's alone; None for anything else.

    What a machine that stopped, or a disk, has left of a file is made again.
    """
    begins, content = (left or b"")[:_CHECKSUM_BYTES], (left or b"")[_CHECKSUM_BYTES:]
    is_whole = content and crc32c(content) == int.from_bytes(begins, "big")
    return pickle.loads(content) if is_whole else None


def name_of(task: BlockTask) -> str:
    """What stands for a task, wherever it is computed: what it reads, by what, and which tile."""
    return hashlib.blake2b(repr(task).encode(), digest_size=16).hexdigest()
