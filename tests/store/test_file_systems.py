"""File systems that refuse locks, links, folders on the disk: told, or done in another way."""

import errno
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from stored_sample import NAME, Sample, refresh, write_chunk

from influence_dag.errors import StoreError
from influence_dag.files import explained, write_atomically
from influence_dag.store import ArtifactStore
from influence_dag.store.posix import durable, folders, holders, locks
from influence_dag.store.posix.durable import make_durable, sync

SAMPLE = Sample()
NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def refusing(number: int):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture
def held(store) -> Path:
    """The lock file of an artifact."""
    return store.root / NAME / ".refresh.lock.held"


@pytest.fixture
def without_flock(monkeypatch):
    monkeypatch.setattr(locks.fcntl, "flock", refusing(errno.ENOLCK))


def with_files(store: ArtifactStore, timeout: float = 0.1) -> ArtifactStore:
    return ArtifactStore(store.root, lock_timeout=timeout, locks="files")


def left_by(held: Path, **changes) -> None:
    """What a process has left that was killed while it held the lock."""
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_text(json.dumps(holders.this_process() | changes))


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_of_the_system_a_sentence_names_lock_files(store, monkeypatch, number):
    monkeypatch.setattr(locks.fcntl, "flock", refusing(number))
    with pytest.raises(StoreError, match=r"no locks .*set `store\.locks: files`, for all who"):
        refresh(store, SAMPLE)
    refresh(with_files(store), SAMPLE)
    np.testing.assert_array_equal(store.version(NAME).open().influences, SAMPLE.values)
    assert not list(store.root.rglob("*.held"))


def test_a_lock_file_keeps_others_out_and_says_who_holds_it(store, held, without_flock):
    with with_files(store).exclusive(NAME):
        words = rf"process {os.getpid()} on .* if that is over, remove .*{held.name}; waited 0.1 s"
        with (
            pytest.raises(StoreError, match=words),
            with_files(store).exclusive(NAME),
        ):
            pass
        assert held.exists()
    assert not held.exists()


def test_who_locks_with_the_system_looks_at_lock_files_too(store, held):
    with (
        with_files(store).exclusive(NAME),
        pytest.raises(StoreError, match="waited"),
        ArtifactStore(store.root, lock_timeout=0.1).exclusive(NAME),
    ):
        pass
    left_by(held, pid=2**30, began="17")
    with ArtifactStore(store.root, lock_timeout=0.1).exclusive(NAME):
        pass


def test_the_lock_file_of_a_process_that_died_is_taken_over(store, held, without_flock):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    left_by(held, pid=pid, began="17")
    with with_files(store).exclusive(NAME):
        pass
    assert not list(held.parent.glob("*.held*"))
    left_by(held, began="17")  # its number is another process's by now
    with with_files(store).exclusive(NAME):
        pass


@pytest.mark.parametrize(
    "elsewhere", [{"boot": "another"}, {"processes": "pid:[7]"}, {"boot": ""}, {"pid": None}]
)
def test_of_a_process_elsewhere_nobody_knows_whether_it_lives(
    store, held, without_flock, monkeypatch, elsewhere
):
    monkeypatch.setattr(holders, "_OUTSIDE", "")  # as within a container
    left_by(held, **elsewhere)
    if elsewhere == {"pid": None}:
        held.write_text("")  # killed before it could say who it is
    with (
        pytest.raises(StoreError, match=f"if that is over, remove {held}; waited"),
        with_files(store).exclusive(NAME),
    ):
        pass
    assert held.exists()


def test_after_a_restart_of_the_machine_its_locks_are_nobodys(
    store, held, without_flock, monkeypatch
):
    here = holders.this_process()
    monkeypatch.setattr(holders, "_OUTSIDE", here["processes"])
    monkeypatch.setattr(holders, "_line", lambda path: "this" if "machine" in path else "now")
    left_by(held, boot="before")
    with with_files(store).exclusive(NAME):
        pass
    left_by(held, boot="before", machine="other")
    with (
        pytest.raises(StoreError, match="waited"),
        with_files(store).exclusive(NAME),
    ):
        pass


def test_two_that_take_over_at_once_do_not_both_hold_it(store, held, without_flock):
    left_by(held, pid=2**30, began="17")
    ends, reading = [], os.pipe()
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                with with_files(store, timeout=10).exclusive(NAME):
                    os.write(reading[1], b"(")
                    time.sleep(0.02)
                    os.write(reading[1], b")")
            finally:
                os._exit(0)
        ends.append(pid)
    for pid in ends:
        os.waitpid(pid, 0)
    assert os.read(reading[0], 100) == b"()" * 4


def test_a_forked_child_neither_holds_nor_ends_a_lock_file(store, held, without_flock):
    with with_files(store).exclusive(NAME):
        if (pid := os.fork()) == 0:
            try:
                raise KeyboardInterrupt
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert held.exists()
    assert not held.exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EIO])
def test_where_links_are_refused_in_any_words_files_are_copied(store, monkeypatch, number):
    refresh(store, SAMPLE)
    monkeypatch.setattr(os, "link", refusing(number))
    changed = SAMPLE.with_train({0: 77.0})
    draft = refresh(store, changed)
    assert draft.chunks_written == 3
    np.testing.assert_array_equal(draft.version.open().influences.values, changed.values)
    assert draft.version.verify(checksums=True) == ()


def test_a_link_that_a_server_made_twice_is_not_written_through(store, monkeypatch):
    """NFS says "exists" when its first answer was lost; a copy would be of a file onto itself."""
    refresh(store, SAMPLE)
    link = os.link

    def twice(source, target, **options):
        link(source, target, **options)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", twice)
    changed = SAMPLE.with_train({0: 77.0})
    refresh(store, changed)
    for number, sample in ((1, SAMPLE), (2, changed)):
        assert store.version(NAME, number).verify(checksums=True) == ()
        values = store.version(NAME, number).open().influences.values
        np.testing.assert_array_equal(values, sample.values)


@pytest.mark.parametrize(
    ("place", "is_folder", "seen", "wanted"),
    [
        (f"{NAME}/versions", False, "file", "folder"),
        (NAME, False, "file", "folder"),
        (f"{NAME}/.lock", True, "folder", "file"),
    ],
)
def test_what_stands_in_the_place_of_a_file_or_folder_is_named(
    tmp_path, place, is_folder, seen, wanted
):
    there = tmp_path / "study" / place
    there.parent.mkdir(parents=True)
    there.mkdir() if is_folder else there.touch()
    told = f"{re.escape(str(there))} is a {seen}, where a {wanted} is to be; move it away"
    with pytest.raises(StoreError, match=told):
        refresh(ArtifactStore(tmp_path / "study"), Sample())


def test_a_folder_in_the_place_of_a_file_that_is_replaced_is_named(tmp_path):
    """Its own name, not that of the file beside it by which it was to be replaced."""
    folder = tmp_path / "marks.json"
    folder.mkdir()
    told = f"{re.escape(str(folder))} is a folder, where a file is to be; move it away"
    with pytest.raises(StoreError, match=told), explained(tmp_path, "writing marks to"):
        write_atomically(folder, b"{}")


def test_no_inodes_left_is_not_called_a_full_disk(store, monkeypatch):
    found = os.statvfs(store.root.parent)
    fields = list(found)
    fields[5], fields[6], fields[7] = 100, 0, 0  # files: all, free, free for us
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    monkeypatch.setattr(Path, "mkdir", refusing(errno.ENOSPC))
    with pytest.raises(StoreError, match=r"no room for one more file .no inodes left"):
        refresh(store, SAMPLE)
    fields[6] = fields[7] = 9
    with pytest.raises(StoreError, match=r"the disk is full.*bytes free"):
        refresh(store, SAMPLE)


def test_folders_that_cannot_be_synced_are_left_to_the_file_system(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(file)


@pytest.mark.parametrize("seconds", [0.0, 0.002], ids=["memory", "disk"])
def test_every_file_is_put_on_the_disk_by_threads_where_that_takes_time(
    tmp_path, monkeypatch, seconds
):
    (tmp_path / "inner").mkdir()
    paths = [tmp_path / "inner" / f"{number}" for number in range(6)]
    for path in paths:
        path.touch()
    by: dict[str, int] = {}

    def noted(path):
        by[str(path)] = threading.get_ident()
        time.sleep(seconds)

    monkeypatch.setattr(durable, "sync", noted)
    monkeypatch.setattr(durable, "_SLOW", 0.001 if seconds else 1.0)
    make_durable(tmp_path)
    assert by.keys() == {str(path) for path in (tmp_path, tmp_path / "inner", *paths)}
    assert (set(by.values()) > {threading.get_ident()}) is bool(seconds)


def test_what_could_not_be_put_on_the_disk_is_not_vouched_for(store, monkeypatch):
    refresh(store, SAMPLE)
    changed = SAMPLE.with_train({0: 77.0})
    with monkeypatch.context() as failing:
        failing.setattr(folders, "make_durable", refusing(errno.EIO))
        with pytest.raises(StoreError, match=r"publishing .* failed: the disk or its connection"):
            refresh(store, changed)
    assert store.version(NAME).number == 1
    assert store.unfinished() == {}
    assert refresh(store, changed).chunks_written == 3


def test_a_draft_whose_folder_was_removed_is_not_begun_anew_in_its_place(store):
    def run():
        with store.new_version(NAME, SAMPLE.layout) as draft:
            shutil.rmtree(draft.contents.path)
            write_chunk(draft, SAMPLE, (0, 0))

    with pytest.raises(StoreError, match=r"writing direct/influences/influences in .* failed"):
        run()
    assert store.current(NAME) is None
    assert refresh(store, SAMPLE).chunks_written == 9


def test_a_version_whose_files_a_reader_keeps_is_removed_the_next_time(store, monkeypatch):
    """As on NFS; the run that had published ended in "the current version is untouched"."""
    few = ArtifactStore(store.root, keep_versions=1)
    refresh(few, SAMPLE)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refusing(errno.EBUSY))
        with pytest.warns(RuntimeWarning, match=r"\.trash-.* could not be removed"):
            refresh(few, edited := SAMPLE.with_train({3: 9.0}))
    assert few.version(NAME).number == 2
    left = few.version(NAME).path.parent
    assert list(left.glob(".trash-*"))
    refresh(few, edited.with_train({4: 9.0}))
    assert not list(left.glob(".trash-*"))
