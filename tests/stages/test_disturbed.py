"""Whatever disturbs a run or its store: a sentence, or right numbers, and the next run mends it.

Each disturbance is drawn from a number. Afterwards every `current` is sound or says that it is not,
and a refresh ends in the arrays of a run from nothing.
"""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tiny_project import MODEL, Project

from influence_dag.errors import InfluenceDagError, StoreError
from influence_dag.store import Version
from influence_dag.store.drafts import StoredDraft

SETTINGS = {"methods": {"cg": None}, "perturbation": None, "compute": {"block_bytes": 2400}}
ROUNDS = 40  # of each disturbance in the campaign
REFUSALS = [errno.EPERM, errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOSYS, errno.EDQUOT]

Disturbed = Callable[[Project, random.Random], None]


def contents(project: Project) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {str(k): v.values for k, v in project.results.open(name).load().data_vars.items()}
        for name in project.results.artifacts
    }


def refreshed_or_told(project: Project) -> None:
    with suppress(InfluenceDagError):
        project.refresh()


@contextmanager
def at_a_write(rng: random.Random, act: Callable[[], None]) -> Iterator[list[str]]:
    """Something happens once, before one of the first forty writes of a run."""
    write, left, seen = StoredDraft.write, rng.randrange(40), []

    def disturbed(draft, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            seen.append(draft.artifact)
            act()
        write(draft, *arguments)

    StoredDraft.write = disturbed
    try:
        yield seen
    finally:
        StoredDraft.write = write


def files_are_replaced(project: Project, rng: random.Random) -> None:
    """Rows or code, while any artifact is at work."""

    def replace() -> None:
        if rng.random() < 0.5:
            project.edit(rng.choice(["train", "test"]), rng.randrange(10), width=rng.random())
        else:
            text = MODEL.replace("Tanh", rng.choice(["Sigmoid", "Softplus"]))
            (project.root / "tiny_model.py").write_text(text)

    project.edit("train", rng.randrange(40), height=2.5)
    with at_a_write(rng, replace):
        refreshed_or_told(project)


def a_child_is_forked(project: Project, rng: random.Random) -> None:
    """As by a data loader: it has all that was open, and ends before the run or after it."""
    children, stays = [], rng.choice([0.0, 0.5])

    def fork() -> None:
        if pid := os.fork():
            children.append(pid)
        else:
            time.sleep(stays)
            os._exit(0)

    project.edit("train", rng.randrange(40), height=2.5)
    with at_a_write(rng, fork):
        project.refresh()
    for pid in children:
        os.waitpid(pid, 0)


def a_call_is_refused(project: Project, rng: random.Random) -> None:
    """One call of the system from some moment on, or a single time, with any error."""
    name = rng.choice(["link", "symlink", "fsync", "rename", "replace", "mkdir", "utime"])
    number, left, for_ever = rng.choice(REFUSALS), rng.randrange(60), rng.random() < 0.5
    real = getattr(os, name)

    def refusing(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0 or (left < 0 and for_ever):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    project.edit("train", rng.randrange(40), height=2.5)
    setattr(os, name, refusing)
    try:
        refreshed_or_told(project)
    finally:
        setattr(os, name, real)


def chosen(project: Project, rng: random.Random) -> Version:
    store = project.results.store
    return store.version(rng.choice(store.names()))


def bits_flip(project: Project, rng: random.Random) -> None:
    """In the bookkeeping: manifest, keys, metadata, labels."""
    version = chosen(project, rng)
    path = version.path / rng.choice(sorted(version.manifest["files"]) + ["manifest.json"] * 9)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.unlink()
    path.write_bytes(content)


def chunks_are_exchanged(project: Project, rng: random.Random) -> None:
    """Two of a variable, or one for that of an older version."""
    version = chosen(project, rng)
    chunks = [path for name in version.variables for path in (version.path / name).glob("c*")]
    one = rng.choice(sorted(chunks) or [version.path])
    name = one.parent.name
    chunks = [each for each in chunks if each.parent == one.parent]
    older = project.results.store.versions(version.artifact)[0].path / name / one.name
    other = older if older.exists() and rng.random() < 0.5 else rng.choice(sorted(chunks) or [one])
    if other == one or one == version.path:
        return
    content = other.read_bytes()
    if other in chunks:
        other.unlink()
        other.write_bytes(one.read_bytes())
    one.unlink(missing_ok=True)
    one.write_bytes(content)


def the_store_is_copied(project: Project, rng: random.Random) -> None:
    """With links followed or left out, folders of others beside it; or it is moved and returns."""
    elsewhere = project.root / "elsewhere"
    shutil.copytree(project.store, elsewhere, symlinks=rng.random() < 0.5)
    for link in list(elsewhere.rglob("current")) if rng.random() < 0.5 else []:
        link.unlink() if link.is_symlink() else shutil.rmtree(link)
    for name in rng.sample([".snapshot", "@eaDir", "Copy of direct", "direct (2)"], 2):
        shutil.copytree(elsewhere / "hessian", elsewhere / name, symlinks=True)
    project.remove_store()
    elsewhere.rename(project.store)


DISTURBANCES: list[Disturbed] = [
    *(files_are_replaced, a_child_is_forked, a_call_is_refused),
    *(bits_flip, chunks_are_exchanged, the_store_is_copied),
]
DAMAGES = (bits_flip, chunks_are_exchanged)
FEW = (files_are_replaced, a_call_is_refused, bits_flip)
KEPT = (*DAMAGES, the_store_is_copied)  # the rows are those that they were
SLOTS = {"top_train", "bottom_train", "blocks", "eigenvectors"}  # of another numbering, or sign


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> Project:
    """A study with two versions of most artifacts."""
    project = Project(tmp_path_factory.mktemp("twice"))
    project.write_settings(**SETTINGS)
    project.refresh()
    project.edit("train", 3, height=2.5)
    project.refresh()
    return project


def read(version: Version, file: str) -> None:
    """All of a version, a file of it first."""
    version.check_bookkeeping()
    version.open().load()
    version.file(file)


def is_sound(project: Project) -> bool:
    """Whether all that is current is as it was written; what is not has to say so when read."""
    sound, store = True, project.results.store
    for name in store.names():
        version = store.version(name)
        if damage := version.verify(checksums=True):
            sound = False
            with pytest.raises(StoreError):
                read(version, damage[0].file)
    return sound


def from_nothing(project: Project, root: Path) -> dict[str, dict[str, np.ndarray]]:
    scratch = project.copy(root / "scratch")
    scratch.remove_store()
    scratch.refresh()
    return contents(scratch)


def disturb(disturbance: Disturbed, finished: Project, root: Path, number: int) -> None:
    rng = random.Random(f"{disturbance.__name__} {number}")
    project = finished.copy(root / "project")
    before = contents(project)
    disturbance(project, rng)
    sound = is_sound(project)
    assert sound or disturbance in DAMAGES
    project.refresh()
    assert is_sound(project)
    assert all(update.is_current for update in project.refresh().values())
    found, wanted = (
        contents(project),
        before if disturbance in KEPT else from_nothing(project, root),
    )
    for name, arrays in wanted.items():
        for key in arrays.keys() - SLOTS:
            equal, (seen, values) = np.testing.assert_allclose, (found[name][key], arrays[key])
            equal(seen, values, rtol=1e-6, atol=1e-8, err_msg=f"{name}/{key}")
    shutil.rmtree(root)


@pytest.mark.filterwarnings("ignore:the link", "ignore:.*current")
@pytest.mark.parametrize("disturbance", FEW, ids=lambda each: each.__name__)
def test_a_disturbed_study_is_told_or_right_and_mended(twice, tmp_path, disturbance):
    disturb(disturbance, twice, tmp_path / "0", 0)


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:the link", "ignore:.*current")
@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda each: each.__name__)
def test_many_disturbances(twice, tmp_path, disturbance):
    for number in range(1, ROUNDS + 1):
        disturb(disturbance, twice, tmp_path / str(number), number)
