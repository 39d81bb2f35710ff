"""Blocks of work as values: what a block is computed from, by which kernel, and where it lies.

A task can be sent to another process, which opens what the task names, computes the block and hands
back arrays: the same bits as here. It reads published versions, by number and content, and nothing
else; it takes no lock, writes nothing and publishes nothing. Whoever holds the lock does that.
"""

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from influence_dag.errors import InfluenceDagError, StoreError, StudyError
from influence_dag.stages.allocation import keep_freed_memory
from influence_dag.stages.blocks import Tile
from influence_dag.stages.graph import reads_of
from influence_dag.stages.landing import Arrays, Computed, landed
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Version
from influence_dag.study.code import put_on_path
from influence_dag.study.study import Study, StudySettings
from influence_dag.study.torch_modes import lock_of_process
from influence_dag.study.users_code import ended

Compute = Callable[[Tile], Computed]


class Kernel(ABC):
    """Computes blocks of an artifact: a frozen value of plain fields; its class is its name.

    The class stands at the top of a module, so that another process finds it by that name. Where it
    runs no code of the study (`runs_code`), it does not matter what that is now.
    """

    @property
    def runs_code(self) -> bool:
        return True

    @abstractmethod
    def at(self, bench: Workbench) -> Compute:
        """What computes a tile, with what it reads opened on this workbench, once for all tiles."""


@dataclass(frozen=True)
class Pin:
    """One published version of an artifact, by its number and by what is in it."""

    artifact: str
    number: int
    data_version: str

    @classmethod
    def of(cls, version: Version) -> "Pin":
        return cls(version.artifact, version.number, version.data_version)

    def opened(self, bench: Workbench) -> Version:
        """That version and no other; a `StoreError` where it is gone, or another has its number."""
        kept = {version.number: version for version in bench.store.versions(self.artifact)}
        named = f"{bench.study.name}/{self.artifact}: version {self.number}"
        if self.number not in kept:
            seen = ", ".join(map(str, kept)) or "none"
            raise StoreError(
                f"{named}, which is to be read, is gone (kept are {seen}); refresh again, and "
                "raise store.keep_versions if others publish meanwhile"
            )
        if (found := kept[self.number]).data_version != self.data_version:
            raise StoreError(
                f"{named} is another than the one that is to be read (content "
                f"{found.data_version:.8}, expected {self.data_version:.8}): the store was made "
                "anew; refresh again"
            )
        return found


@dataclass(frozen=True)
class Inputs:
    """All that blocks of one artifact are computed from: a study, its code, published versions.

    `settings` are the study's as JSON, `root` its project's folder, `code` the fingerprint of the
    code that it names (None where none is run), `made_with` the versions of the libraries. Among
    `reads` is the version of the artifact itself that is to be replaced: iterative solves start
    from it.
    """

    artifact: str
    study: str
    root: str
    settings: str
    code: str | None
    made_with: tuple[tuple[str, str], ...]
    reads: tuple[Pin, ...]

    @classmethod
    def of(cls, bench: Workbench, artifact: str, *, runs_code: bool = True) -> "Inputs":
        """What the stage reads that is at work on an artifact, whose lock is held."""
        study, before = bench.study, bench.store.base(artifact)
        read = [bench.require(name) for name in reads_of(study, artifact)]
        return cls(
            artifact,
            study.name,
            str(study.root),
            study.settings.model_dump_json(),
            _code_of(bench) if runs_code else None,
            tuple(provenance()["made_with"].items()),
            tuple(map(Pin.of, [*read, *([before] if before else [])])),
        )

    def opened(self) -> "PinnedBench":
        """A workbench on exactly these inputs; refuses other libraries, code or versions."""
        if (here := tuple(provenance()["made_with"].items())) != self.made_with:
            raise StudyError(
                f"{self.study}: the process that computes has {_listed(here)}, the one that stores "
                f"has {_listed(self.made_with)}; install the same versions in both"
            )
        study = Study(self.study, self._settings, Path(self.root))
        put_on_path(study.root)
        bench = PinnedBench(study, self)
        if self.code is not None and _code_of(bench) != self.code:
            raise StudyError(
                f"{self.study}: the code that the study names is other code in {study.root} than "
                "it was when the work was handed out; refresh again when it is written"
            )
        return bench

    @property
    def _settings(self) -> StudySettings:
        try:
            return StudySettings.model_validate_json(self.settings)
        except ValidationError as error:
            first = error.errors()[0]
            raise StudyError(
                f"{self.study}: the process that computes cannot read the settings "
                f"({'.'.join(map(str, first['loc']))}: {first['msg']}); what adds a method has to "
                "be imported there as well"
            ) from error


def _code_of(bench: Workbench) -> str:
    from influence_dag.stages.keys import code_of  # here: rows are read before torch is imported

    return code_of(bench)


def _listed(versions: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(map(" ".join, versions))


@dataclass(frozen=True)
class BlockTask:
    """One block: a tile of an artifact's arrays, the kernel that computes it, and its inputs."""

    inputs: Inputs
    kernel: Kernel
    tile: Tile

    @property
    def artifact(self) -> str:
        return self.inputs.artifact

    def __str__(self) -> str:
        return f"{self.artifact}[{self.tile}]"


class PinnedBench(Workbench):
    """A workbench that reads the versions that inputs name, whatever is published meanwhile."""

    def __init__(self, study: Study, inputs: Inputs):
        super().__init__(study)
        self._pinned = {pin.artifact: pin.opened(self) for pin in inputs.reads}
        self._making = inputs.artifact

    def require(self, artifact: str) -> Version:
        if artifact not in self._pinned:
            named = ", ".join(self._pinned)
            raise LookupError(f"{self._making} reads {artifact}; its tasks name {named}")
        return self._pinned[artifact]

    def undamaged(self, artifact: str) -> Version | None:
        version = self._pinned.get(artifact)
        return None if version is None or version.verify() else version


Results = Generator[tuple[BlockTask, Arrays], None, None]


def run(task: BlockTask) -> Arrays:
    """Compute a block, in whatever process: its arrays, by name.

    What it reads is opened for the first task and kept for those that follow. What goes wrong is
    raised as it is, with a note of the artifact and tile; one block at a time is computed with one
    workbench, because a module's parameters are swapped while it is evaluated.
    """
    return next(landed([(task, started(task))]))[1]


def started(task: BlockTask) -> Computed:
    """As `run`, but what is given may be on a GPU, and not yet computed: see `stages.landing`."""
    try:
        bench = _bench(task.inputs)
        with bench.busy, bench.modes():
            return bench.once(task.kernel, lambda: task.kernel.at(bench))(task.tile)
    except SystemExit as error:  # people's code would end whatever process this is
        raise _noted(ended(error), task) from error
    except Exception as error:
        if task.inputs in _at_hand or _travels(error):
            _noted(error, task)
            raise
        raise _noted(InfluenceDagError(f"{type(error).__name__}: {error}"), task) from error


def _noted(error: Exception, task: BlockTask) -> Exception:
    error.add_note(f"while computing {task}")
    return error


def _travels(error: Exception) -> bool:
    """Whether an error of other people's making can be told to another process as it is."""
    try:
        pickle.dumps(error)
        copy.copy(error)  # as unpickling would, its class makes it again
    except Exception:  # whatever its class does when it is made again
        return False
    return True


# Workbenches that a process keeps which computes tasks, each with a model and its factorisation: as
# many as the process that stores has. Tasks of several artifacts in turn open theirs again.
KEPT = 1

_at_hand: dict[Inputs, Workbench] = {}
_opening = lock_of_process()
_opened = lru_cache(maxsize=KEPT)(Inputs.opened)


@contextmanager
def at_hand(inputs: Inputs, bench: Workbench) -> Iterator[None]:
    """Inside, tasks of this process with these inputs are computed on a workbench that is open."""
    _at_hand[inputs] = bench
    try:
        yield
    finally:
        del _at_hand[inputs]


def _bench(inputs: Inputs) -> Workbench:
    if (bench := _at_hand.get(inputs)) is not None:
        return bench
    keep_freed_memory()
    with _opening:
        return _opened(inputs)
