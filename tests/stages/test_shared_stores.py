"""Two processes at one study, a disk that is full, a store that may not be written."""

import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import study_faults
from study_faults import Launcher
from tiny_project import Project

from influence_dag.errors import StoreError
from influence_dag.store.posix.locks import locked

SMALL = {"methods": {"cg": None}}
WAITING = r"^(\S+): waiting for process (\d+) on \S+ \(since .*\), which writes (.*)$"


def together(launcher: Launcher, project: Project, offset: float) -> list[str]:
    """Refresh in two processes that begin `offset` seconds apart; what each has said."""
    start = time.monotonic() + 0.3
    outputs = [project.root / f"said-{k}" for k in range(2)]
    pids = [
        launcher.start(study_faults.refresh_at, output, str(project.folder), start + k * offset)
        for k, output in enumerate(outputs)
    ]
    assert [launcher.end(pid) for pid in pids] == [0, 0], [o.read_text() for o in outputs]
    return [output.read_text() for output in outputs]


def computed(said: str) -> Counter[str]:
    found = re.findall(r"^(\S+): version \d+, (\d+) blocks computed", said, re.M)
    return Counter({name: int(blocks) for name, blocks in found if int(blocks)})


@pytest.mark.parametrize(
    "times", [pytest.param(12, marks=pytest.mark.campaign, id="12"), pytest.param(1, id="1")]
)
def test_two_processes_do_the_work_once_and_who_waits_says_for_whom(
    project, launcher, tmp_path, times
):
    rng = random.Random(times)
    project.write_settings(**SMALL)
    project.edit("train", 3, height=2.5)
    alone = project.copy(tmp_path / "alone")
    wanted = Counter({name: u.blocks_computed for name, u in alone.refresh().items()})
    waited = 0
    for number in range(times):
        both = project.copy(tmp_path / str(number))
        said = together(launcher, both, rng.uniform(0, 0.3))
        assert computed(said[0]) + computed(said[1]) == wanted
        waiting = re.findall(WAITING, "\n".join(said), re.M)
        assert all(path == str(both.store / name) for name, _, path in waiting)
        waited += len(waiting)
        for name in ("direct/influences", "direct/perturbation_influences"):
            found, right = both.results.open(name), alone.results.open(name)
            variable = name.partition("/")[2]
            np.testing.assert_array_equal(found[variable], right[variable])
            assert [version.number for version in both.results.versions(name)] == [1, 2]
    print(f"{times} pairs of processes, {waited} times one waited for the other")
    assert waited


def test_who_waits_too_long_is_told_for_whom_and_what_to_do(project):
    project.edit("train", 3, height=2.5)
    project.write_settings(store={"lock_timeout": 0.2})
    said: list[str] = []
    told = r"dataset is being written by process \d+ on .*waited 0\.2 s.*raise `store.lock_timeout`"
    with (
        locked(project.store / "dataset/.lock", timeout=0),
        pytest.raises(StoreError, match=told),
    ):
        project.refresh(said.append)
    assert [name for name, _, _ in re.findall(WAITING, "\n".join(said), re.M)] == ["dataset"]


# A file system of its own


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root, and a kernel that allows it")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def on_a_small_disk(project) -> Iterator[Project]:
    """The project with its store on a disk of 24 MB."""
    with small_disk(project.root / "disk", "24m"):
        shutil.copytree(project.root / "store", project.root / "disk/store", symlinks=True)
        project.write_settings(store={"path": "disk/store"}, **SMALL)
        yield project


def test_a_full_disk_is_told_in_bytes_and_costs_only_time(on_a_small_disk):
    project = on_a_small_disk
    project.edit("train", 3, height=2.5)
    ballast = project.root / "disk/ballast"
    free = shutil.disk_usage(project.store).free
    ballast.write_bytes(bytes(free - 400_000))  # some artifacts fit, not all
    with pytest.raises(StoreError) as error:
        project.refresh()
    told = str(error.value)
    assert str(project.store) in told
    assert re.search(r"the disk is full; free some space \([\d,]+ bytes free", told), told
    assert "The current version is untouched and the next run resumes" in told
    for name in project.results.artifacts:
        assert project.results.store.version(name).verify(checksums=True) == ()
        project.results.open(name).load()
    ballast.unlink()
    updates = project.refresh()
    assert updates["report"].version == 2
    assert all(update.is_current for update in project.refresh().values())


def test_a_store_that_may_only_be_read_is_refused_before_anything_is_computed(on_a_small_disk):
    project = on_a_small_disk
    project.refresh()
    subprocess.run(["mount", "-o", "remount,ro", str(project.root / "disk")], check=True)
    assert all(update.is_current for update in project.refresh().values()), "nothing to write"
    project.edit("train", 3, height=2.5)
    told = f"{project.store}/dataset.*the store is read-only; give `store.path` a folder"
    with pytest.raises(StoreError, match=told):
        project.refresh()
