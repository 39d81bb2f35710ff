"""A kind of bad input: what is given, through which door, and what comes."""

import contextlib
import io
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner
from tiny_project import Project

from influence_dag.__main__ import main
from influence_dag.errors import InfluenceDagError
from influence_dag.study.loading import load_study

HANGS = 20  # seconds of the clock, on a machine that others use too
Spoil = Callable[[Project], object]


@dataclass(frozen=True)
class Kind:
    """One kind; `door` is that of its section when nothing is said."""

    name: str
    spoil: Spoil
    door: Callable[[Project], object] | None = None


@dataclass(frozen=True)
class Section:
    """Kinds that come in through the same door. `told_as` are the types that errors may have."""

    title: str
    reached: str
    door: Callable[[Project], object]
    kinds: list[Kind]
    finished: bool = False  # whether the study has results before
    told_as: tuple[type[Exception], ...] = (InfluenceDagError,)


class Met(NamedTuple):
    """What came of a kind: the sentence, and what it took.

    It begins with the type of the error, as the command line prints it; paths start at the
    project's folder.
    """

    sentence: str
    cpu_seconds: float


class RefusedByCommandError(InfluenceDagError):
    """What the command line printed before it ended with a code that is not 0."""


class HangsError(BaseException):
    """Nothing came; no `except Exception` of a library keeps it."""


class AcceptedError(Exception):
    """Bad input that nobody refused."""


def meet(section: Section, kind: Kind, project: Project) -> Met:
    """Give a kind to a study and hear what it says; anything but a sentence is raised."""
    kind.spoil(project)
    began = time.process_time()
    try:
        with _alarm(), _only_its_own_code():
            (kind.door or section.door)(project)
    except section.told_as as error:
        said = str(error)
        told = said if isinstance(error, RefusedByCommandError) else f"{_type(error)}: {said}"
        return Met(_from_the_project(told, project), time.process_time() - began)
    raise AcceptedError(f"{section.title}: {kind.name}")


def _type(error: Exception) -> str:
    return type(error).__name__


def _from_the_project(said: str, project: Project) -> str:
    for root in (project.root.resolve(), project.root):
        said = said.replace(f"{root}/", "").replace(str(root), "PROJECT")
    return said.strip()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """What waits for ever is interrupted, reading and opening of files too."""

    def ring(*_: object) -> None:
        raise HangsError(f"it hangs: nothing came in {HANGS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)  # a kind's code has switched it off


@contextlib.contextmanager
def _only_its_own_code() -> Iterator[None]:
    """Projects that were materialised in this process before are not on Python's path."""
    before = list(sys.path)
    sys.path[:] = [path for path in before if not (Path(path) / "tiny_model.py").exists()]
    try:
        yield
    finally:
        sys.path[:] = before


# Doors


def load(project: Project) -> None:
    """What opening a study's settings says."""
    load_study(project.folder)


def refresh(project: Project) -> None:
    """What a refresh says, stage by stage."""
    project.refresh()


def materialize(project: Project) -> None:
    """What the whole job says, with Dagster around the stages and the checks."""
    project.materialize()


def command(*arguments: str) -> Callable[[Project], None]:
    """What the command line says; `{folder}`, `{store}` and `{root}` are the project's."""

    def run(project: Project) -> None:
        places = {"folder": project.folder, "store": project.store, "root": project.root}
        given = [argument.format(**places) for argument in arguments]
        with contextlib.redirect_stderr(io.StringIO()):
            result = CliRunner().invoke(main, given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            raise RefusedByCommandError(result.output)

    return run


# What is done to a project


def settings(**changes: Any) -> Spoil:
    """Other settings; None takes one away."""
    return lambda project: project.write_settings(**changes)


def model(source: str, **changes: Any) -> Spoil:
    """Another `tiny_model.py`, and settings of `model`."""

    def spoil(project: Project) -> None:
        project.write_model(source)
        project.write_settings(model=changes)

    return spoil


def file(name: str, content: bytes | str | Callable[[], bytes]) -> Spoil:
    """A file with this content, in the project's folder."""

    def spoil(project: Project) -> None:
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = content() if callable(content) else content
        path.write_bytes(given.encode() if isinstance(given, str) else given)

    return spoil


def all_of(*steps: Spoil) -> Spoil:
    """One thing after the other."""

    def spoil(project: Project) -> None:
        for step in steps:
            step(project)

    return spoil


def defs(edit: Callable[[str], str | bytes]) -> Spoil:
    """The text of `defs.yaml`, edited."""

    def spoil(project: Project) -> None:
        path: Path = project.folder / "defs.yaml"
        edited = edit(path.read_text())
        path.write_bytes(edited.encode() if isinstance(edited, str) else edited)

    return spoil


def table(text: str, name: str = "train.csv", **data: Any) -> Spoil:
    """Another training table."""
    return all_of(file(name, text), settings(data={"train": name, **data}))


def without(folder: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()


def nothing(project: Project) -> None:
    """It is the question that is wrong."""
