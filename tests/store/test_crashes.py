"""Whatever ends a process while it writes, readers see a whole version and the next run goes on."""

import errno
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import faults
import numpy as np
import pytest
from interrupts import each_interruption
from stored_sample import NAME, Sample, chunk_files, refresh, refresh_with_results, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore, drafts
from influence_dag.store.manifests import sealed
from influence_dag.store.posix import locks
from influence_dag.store.testing.interruption import interrupted_run

OLD = Sample()
NEW = replace(OLD, train=(*range(8), *range(50, 70)))  # 7 of 12 chunks are other ones
NEW_CHUNKS = 9

CAMPAIGN = pytest.param(1, marks=pytest.mark.campaign, id="every point")


def finished_chunks(root: Path) -> int:
    """How many chunks an interrupted run finished, by its journal, read independently."""
    keys: dict[tuple[int, ...], str] = {}
    for journal in (root / NAME / "versions").glob(".partial-*.journal"):
        for line in journal.read_text().splitlines()[1:]:
            entry = json.loads(line) if line.endswith("}") else {}
            for index, key in zip(entry.get("chunks", []), entry.get("keys", []), strict=False):
                keys[tuple(index)] = key
    return len(keys)


def assert_whole(store: ArtifactStore, *samples: Sample) -> None:
    """`current` is sound and holds exactly one of the samples."""
    version = store.version(NAME)
    assert version.verify(checksums=True) == ()
    dataset = version.open()
    values = dataset.influences.values
    assert any(np.array_equal(values, sample.values) for sample in samples)
    if "total" in dataset:
        np.testing.assert_array_equal(dataset.total, values.sum(axis=1))


def journal_of(draft):
    folder = draft.contents.path
    return folder.with_name(f"{folder.name}.journal")


def assert_tidy(store: ArtifactStore) -> None:
    """Nothing temporary is left anywhere."""
    names = {path.name for path in (store.root / NAME).rglob("*")}
    assert not {name for name in names if "partial" in name or "trash" in name}


@pytest.fixture(scope="module")
def refreshed_once():
    with tempfile.TemporaryDirectory() as folder:
        refresh(ArtifactStore(folder), OLD)
        yield Path(folder)


@pytest.fixture
def store(refreshed_once, tmp_path):
    return fresh_copy(refreshed_once, tmp_path / "store")


def test_a_process_that_is_to_fail_imports_nothing_itself(store, tmp_path):
    """Some 60 are started here: of a second each, most would be imports of numpy and Zarr."""
    said = tmp_path / "said"
    outcome = faults.start(faults.refresh_telling_imports, store.root, NEW, said).end()
    assert outcome.exit_code == 0
    assert set(said.read_text().split()) <= {"__mp_main__", "encodings", "multiprocessing"}


def fresh_copy(source: Path, target: Path) -> ArtifactStore:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return ArtifactStore(target)


@pytest.mark.parametrize("stride", [CAMPAIGN, pytest.param(9, id="every 9th point")])
def test_a_kill_at_any_point_leaves_a_whole_version_and_the_next_run_resumes(
    refreshed_once, tmp_path, stride
):
    at, killed, resumed = 1, 0, 0
    while True:
        store = fresh_copy(refreshed_once, tmp_path / "store")
        outcome = faults.start(faults.refresh_with, faults.kill, at, store.root, NEW).end()
        if outcome.exit_code == 0:
            break
        assert outcome.exit_code == -signal.SIGKILL
        assert_whole(store, OLD, NEW)
        finished = finished_chunks(store.root)
        draft = refresh_with_results(store, NEW)
        published = (store.root / NAME / "versions/000002").exists() and draft.chunks_written == 0
        assert published or draft.chunks_written == NEW_CHUNKS - finished
        assert_whole(store, NEW)
        assert "total" in draft.version.open()
        assert_tidy(store)
        at, killed, resumed = at + stride, killed + 1, resumed + (0 < finished < NEW_CHUNKS)
    assert killed > 60 / stride
    assert resumed > 15 / stride


@pytest.mark.parametrize("stride", [CAMPAIGN, pytest.param(29, id="every 29th point")])
def test_what_an_interrupted_run_left_never_reaches_a_run_for_other_data(
    refreshed_once, tmp_path, stride
):
    others = [
        NEW.with_train({9: -1.0}),
        replace(NEW, attrs={"units": "other"}),
        replace(NEW, chunks=(4, 7)),
        OLD,
    ]
    at = 1
    while True:
        store = fresh_copy(refreshed_once, tmp_path / "store")
        if faults.start(faults.refresh_with, faults.kill, at, store.root, NEW).end().exit_code == 0:
            break
        other = others[at % len(others)]
        refresh_with_results(store, other)
        assert_whole(store, other)
        assert_tidy(store)
        at += stride


@pytest.mark.parametrize("stride", [CAMPAIGN, pytest.param(23, id="every 23rd point")])
def test_a_disk_that_fills_up_at_any_point_costs_only_time(refreshed_once, tmp_path, stride):
    at = 1
    while True:
        store = fresh_copy(refreshed_once, tmp_path / "store")
        outcome = faults.start(faults.refresh_with, faults.no_space, at, store.root, NEW).end()
        if outcome.exit_code == 0:
            break
        assert outcome.exit_code == 3
        assert "the disk is full; free some space" in outcome.error
        assert_whole(store, OLD, NEW)
        finished = finished_chunks(store.root)
        draft = refresh_with_results(store, NEW)
        assert draft.chunks_written in (0, NEW_CHUNKS - finished)
        assert_whole(store, NEW)
        assert_tidy(store)
        at += stride
    assert at > 50


def test_files_that_may_not_grow_are_an_error_that_says_so(store):
    big = replace(NEW, train=tuple(np.random.default_rng(0).normal(size=1000)), chunks=(10, 1000))
    outcome = faults.start(faults.refresh_with_small_files, store.root, big, 4_096).end()
    assert outcome.exit_code == 3
    assert "above the limit of its file system" in outcome.error
    assert_whole(store, OLD)
    refresh(store, big)
    assert_whole(store, big)


@pytest.mark.parametrize(
    "sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name
)
@pytest.mark.parametrize("times", [pytest.param(100, marks=pytest.mark.campaign), 2])
def test_a_signal_at_a_random_moment_leaves_a_whole_version(store, sign, times):
    rng = random.Random(times)
    for _ in range(times):
        running = faults.start(faults.refresh_forever, store.root, [NEW, OLD])
        time.sleep(0.05 + rng.uniform(0, 0.3))
        assert running.end_by(sign).exit_code in (-sign, 1)
        assert_whole(store, OLD, NEW)
    refresh(store, NEW)
    assert_whole(store, NEW)
    assert_tidy(store)


def test_wherever_ctrl_c_meets_a_write_its_draft_is_left(store):
    def watched(code):
        return code.co_name == "_writing" or code.co_qualname.startswith("UnderWay.")

    steps = list(each_interruption(lambda: refresh(store, NEW), watched))
    assert len(steps) > 10
    refresh(store, NEW)
    assert_whole(store, NEW)
    assert_tidy(store)


def test_a_write_that_ctrl_c_cut_off_is_not_trusted(store, monkeypatch):
    write = drafts.write_chunk

    def cut_off(*arguments):
        size = write(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return size

    monkeypatch.setattr(drafts, "write_chunk", cut_off)
    with pytest.raises(KeyboardInterrupt), store.new_version(NAME, NEW.layout) as draft:
        write_chunk(draft, NEW, (0, 1))
    monkeypatch.undo()
    assert refresh(store, NEW).chunks_written == NEW_CHUNKS
    assert_whole(store, NEW)


def test_what_a_kill_left_of_publishing_goes_when_the_version_is_found_current(store):
    """Between the new link and the end of the journal; nothing may ever be written there again."""
    (store.root / NAME / "versions/.partial-000001.journal").write_text("{}")
    assert store.version(NAME).number == 1
    store.restore_pointer(NAME)
    assert_tidy(store)
    assert_whole(store, OLD)


def test_an_unfinished_version_of_another_boot_is_not_trusted(store, monkeypatch):
    interrupted_run(store, NEW, 1)
    monkeypatch.setattr("influence_dag.store.posix.journal.boot_id", lambda: "another")
    draft = refresh(store, NEW)
    assert not draft.resumed
    assert draft.chunks_written == NEW_CHUNKS


@pytest.mark.parametrize("torn", [b'\n{"dirty": "influences", "chu', b"\n{", b"\n\x00\x00"])
def test_a_torn_line_of_the_journal_is_skipped(store, torn):
    journal = journal_of(interrupted_run(store, NEW, 1))
    journal.write_bytes(journal.read_bytes() + torn)
    assert interrupted_run(store, NEW, 1).resumed
    assert refresh(store, NEW).chunks_written == NEW_CHUNKS - 2
    assert_whole(store, NEW)


def test_a_chunk_marked_dirty_is_computed_again_even_under_the_key_of_its_clone(store):
    """Killed while chunk (0, 0), right in the base, was being replaced."""
    journal = journal_of(interrupted_run(store, NEW, 0))
    dirty = sealed({"dirty": "influences", "chunks": [[0, 0]]})
    journal.write_bytes(journal.read_bytes() + b"\n" + dirty)
    assert refresh(store, NEW).chunks_written == NEW_CHUNKS + 1
    assert_whole(store, NEW)


def test_gc_removes_what_an_interrupted_run_left(store):
    interrupted_run(store, NEW, 1)
    removed = store.gc()
    assert sorted(Path(name).name for name in removed) == [
        ".partial-000002",
        ".partial-000002.journal",
    ]
    assert_tidy(store)


def test_gc_removes_the_beginning_of_an_artifact_that_was_never_finished(tmp_path):
    store = ArtifactStore(tmp_path)
    interrupted_run(store, NEW, 1)
    assert store.names() == []
    assert len(store.gc()) == 2
    assert_tidy(store)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_store_that_may_not_be_written_is_read_and_named_in_the_error(refreshed_once):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        store = fresh_copy(refreshed_once, Path(folder) / "store")
        for path in (Path(folder), store.root):
            path.chmod(0o755)
        outcome = faults.start(faults.refresh_unprivileged, store.root, NEW).end()
        assert outcome.exit_code == 3
        assert "no permission; give `store.path` a folder that can be written" in outcome.error
        assert str(store.root) in outcome.error


def test_a_second_writer_is_refused_with_the_name_of_the_first(store):
    running = faults.start(faults.hold_lock, store.root, OLD, 3.0)
    while not (store.root / NAME / ".lock").stat().st_size or not list(
        (store.root / NAME / "versions").glob(".partial-*.journal")
    ):
        time.sleep(0.01)
    impatient = ArtifactStore(store.root, lock_timeout=0.1)
    with (
        pytest.raises(StoreError, match=f"process {running.process.pid} on .*waited 0.1 s"),
        impatient.new_version(NAME, OLD.layout),
    ):
        pass
    assert store.plan(NAME, OLD.layout, OLD.expected).up_to_date, "readers need no lock"
    running.process.kill()
    assert running.end().exit_code == -signal.SIGKILL
    refresh(impatient, NEW)


def test_who_waits_says_at_once_for_whom(store):
    said: list[str] = []
    running = faults.start(faults.hold_lock, store.root, OLD, 0.5)
    while not list((store.root / NAME / "versions").glob(".partial-*.journal")):
        time.sleep(0.01)
    refresh(ArtifactStore(store.root, lock_timeout=30, report=said.append), NEW)
    (line,) = said
    assert line.startswith(f"{NAME}: waiting for process {running.process.pid} on ")
    assert line.endswith(f", which writes {store.root / NAME}")


@pytest.mark.parametrize("times", [1, 3])
def test_writes_of_other_threads_are_waited_for_however_often_the_main_one_is_interrupted(
    store, times
):
    """Also by what Dagster's handler raises, which is no KeyboardInterrupt."""

    class Interrupt(BaseException):
        pass

    def handler(*_):
        raise Interrupt

    def write_in_a_thread(draft):
        threading.Thread(target=write_chunk, args=(draft, NEW, (0, 1))).start()
        time.sleep(5)

    def slow(*arguments):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return write(*arguments)

    before, write = signal.signal(signal.SIGINT, handler), drafts.write_chunk
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drafts, "write_chunk", slow)
            with pytest.raises(Interrupt), store.new_version(NAME, NEW.layout) as draft:
                write_in_a_thread(draft)
        assert draft.chunks_written == 1
        after = {path: path.stat().st_mtime_ns for path in draft.contents.path.rglob("*")}
        time.sleep(0.2)
        assert after == {path: path.stat().st_mtime_ns for path in draft.contents.path.rglob("*")}
        assert refresh(store, NEW).chunks_written == NEW_CHUNKS - 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_of_the_same_process_is_kept_apart_too(store):
    impatient = ArtifactStore(store.root, lock_timeout=0.05)
    with (
        pytest.raises(StoreError, match=f"process {os.getpid()} "),
        store.new_version(NAME, OLD.layout),
        impatient.new_version(NAME, OLD.layout),
    ):
        pass


def test_several_processes_at_once_do_the_work_once(store):
    running = [faults.start(faults.refresh_waiting, store.root, NEW) for _ in range(4)]
    assert [process.end() for process in running] == [(0, "")] * 4
    assert [version.number for version in store.versions(NAME)] == [1, 2]
    assert_whole(store, NEW)
    assert_tidy(store)


def test_older_versions_keep_their_bytes_through_it_all(store):
    before = chunk_files(store, 1)
    faults.start(faults.refresh_with, faults.kill, 60, store.root, NEW).end()
    refresh(store, NEW)
    assert chunk_files(store, 1) == before


def test_a_forked_child_does_not_go_on_holding_a_lock(store):
    """A data loader's worker outlives the process that forked it, when that one is killed."""
    holder = os.fork()
    if holder == 0:
        with store.exclusive(NAME):
            if os.fork() == 0:
                time.sleep(3)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    with store.exclusive(NAME):
        pass


def test_a_lock_is_not_lost_by_forking(store):
    with store.exclusive(NAME):
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with (
            pytest.raises(StoreError, match=f"process {os.getpid()}"),
            ArtifactStore(store.root, lock_timeout=0.1).exclusive(NAME),
        ):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_an_error_that_says_so(store, monkeypatch, number):
    def refused(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("influence_dag.store.posix.locks.fcntl.flock", refused)
    words = "local disk" if number == errno.EIO else "file system has no locks"
    with pytest.raises(StoreError, match=rf"locking .*\.lock failed: .*{words}"):
        refresh(store, Sample())


def test_a_lock_is_let_go_wherever_ctrl_c_meets_its_release(store):
    def hold():
        with store.exclusive(NAME):
            pass

    def watched(code):
        return code.co_filename == locks.__file__ and code.co_name in ("release", "locked")

    for _ in each_interruption(hold, watched):
        with ArtifactStore(store.root, lock_timeout=0.0).exclusive(NAME):
            pass


def test_a_finished_chunk_that_was_taken_away_is_computed_again(store):
    """The journal vouches for it: whoever resumed would miss it again, and again."""

    def write_and_lose():
        with store.new_version(NAME, NEW.layout) as draft:
            for index in draft.outdated(NEW.expected)["influences"]:
                write_chunk(draft, NEW, index)
            (draft.contents.path / "influences" / "c.0.1").unlink()

    with pytest.raises(StoreError, match=r"c\.0\.1 vanished before it was published; run again"):
        write_and_lose()
    refresh(store, NEW)
    assert_whole(store, NEW)
