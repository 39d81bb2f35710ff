"""What a store in Icechunk promises beyond the contract: tags, conflicts, leases, gc."""

import asyncio
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from harm import kept_in
from stored_sample import NAME, Sample, refresh

from influence_dag.errors import StoreError
from influence_dag.store import open_store
from influence_dag.store.icechunk import contents, leases, places, versions
from influence_dag.store.testing import write_chunk

icechunk: Any = pytest.importorskip("icechunk")
SAMPLE = Sample()
OTHER = SAMPLE.with_train({3: 50.0})


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"icechunk+file://{tmp_path}/studies/tiny"


@pytest.fixture
def store(address: str) -> Any:
    return open_store(address, lock_timeout=0.2)


def plain(address: str) -> Any:
    """What Icechunk opens without us."""
    path = f"{address.removeprefix('icechunk+file://')}/{NAME}/versions"
    return icechunk.Repository.open(icechunk.local_filesystem_storage(path))


def test_plain_icechunk_and_xarray_read_versions_as_tags_and_main_as_the_current(store, address):
    refresh(store, SAMPLE)
    refresh(store, OTHER)
    repository = plain(address)
    assert repository.list_tags() == {"000001", "000002"}
    assert repository.list_branches() == {"main", "empty"}
    for where, sample in [({"tag": "000001"}, SAMPLE), ({"branch": "main"}, OTHER)]:
        session = repository.readonly_session(**where)
        dataset = xr.open_zarr(session.store, consolidated=False, chunks=None)
        np.testing.assert_array_equal(dataset.influences, sample.values)
        assert dataset.train.values.tolist() == [f"r{i}" for i in range(20)]
        assert dataset.attrs["units"] == "loss"


def test_chunks_that_did_not_change_are_stored_once(store, address):
    def chunks() -> int:
        return len(places.Place(address).files.find(f"{tail}/{NAME}/versions/chunks"))

    tail = address.removeprefix("icechunk+file://")
    refresh(store, SAMPLE)
    before = chunks()
    refresh(store, OTHER)
    assert chunks() - before < 3 + 5, "three chunks and a version's own small files"


def test_of_two_who_publish_the_second_is_told_and_nothing_is_lost(store, address):
    """Their locks excluded each other, but for one that was taken over from who was not dead."""
    refresh(store, SAMPLE)
    third, others = SAMPLE.with_train({5: 7.0}), versions.IcechunkStore(address)
    others._place = UnlockedPlace(address)

    def while_another_writes() -> None:
        with store.new_version(NAME, OTHER.layout) as draft:
            for index in draft.outdated(OTHER.expected)["influences"]:
                write_chunk(draft, OTHER, index)
            refresh(others, third)

    with pytest.raises(StoreError, match="influences failed: another writer has begun"):
        while_another_writes()
    now = open_store(address).version(NAME)
    assert (now.number, now.verify(checksums=True)) == (2, ())
    np.testing.assert_array_equal(now.read("influences"), third.values)
    refresh(open_store(address), OTHER)
    assert open_store(address).version(NAME).number == 3


class UnlockedPlace(places.Place):
    def locked(self, *_: Any, **__: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def test_a_number_that_another_has_published_is_not_given_twice(store):
    refresh(store, SAMPLE)
    repository = kept_in(store.version(NAME)).repository
    session = repository.begin_draft(1)
    with pytest.raises(StoreError, match="version 1 was published by another writer meanwhile"):
        repository.publish(1, session.snapshot_id)


def test_what_is_published_is_what_was_written_whoever_has_begun_meanwhile(store, monkeypatch):
    """Another writer may hold this one to be dead, and begin a draft of its own."""
    refresh(store, SAMPLE)
    repository, finish = kept_in(store.version(NAME)).repository, versions.finish

    def overtaken(draft):
        finish(draft)
        repository.begin_draft(1)

    monkeypatch.setattr(versions, "finish", overtaken)
    refresh(store, OTHER)
    np.testing.assert_array_equal(store.version(NAME).read("influences"), OTHER.values)
    assert repository.branch("draft") == repository.snapshot(1), "which is the other's"


def test_a_store_that_is_removed_and_made_anew_is_the_new_one_to_who_had_it_open(store, address):
    folder = Path(address.removeprefix("icechunk+file://"))
    refresh(store, SAMPLE)
    held = store.version(NAME)
    np.testing.assert_array_equal(held.read("influences"), SAMPLE.values)
    shutil.rmtree(folder)
    refresh(open_store(address), OTHER)
    np.testing.assert_array_equal(store.version(NAME).read("influences"), OTHER.values)
    assert store.plan(NAME, OTHER.layout, OTHER.expected).up_to_date
    shutil.rmtree(folder)
    assert store.current(NAME) is None
    refresh(open_store(address), SAMPLE.with_train({5: 7.0}))
    assert refresh(store, OTHER).chunks_written
    np.testing.assert_array_equal(store.version(NAME).read("influences"), OTHER.values)


def test_a_lease_that_cannot_be_let_go_of_ends_no_run():
    class Unreachable:
        def cat_file(self, path):
            raise OSError("the network is down")

    leases._Lease(Unreachable(), "a/.lock", "a").release()


KILLED = """
import os, sys
from influence_dag.store import open_store
from influence_dag.store.icechunk import versions
from stored_sample import NAME, Sample
from influence_dag.store.testing import write_chunk
versions.KEPT_EVERY = 0.0
sample = Sample()
with open_store(sys.argv[1]).new_version(NAME, sample.layout) as draft:
    for index in draft.outdated(sample.expected)["influences"][:4]:
        write_chunk(draft, sample, index)
    os.kill(os.getpid(), 9)
"""


def test_what_was_kept_is_there_after_a_kill_and_what_came_since_is_computed_again(
    store, address, monkeypatch
):
    """A kill lets nobody commit what is there when it comes."""
    assert versions.KEPT_EVERY == 30, "as the documentation says"

    def until_killed() -> None:
        with open_store(address).new_version(NAME, SAMPLE.layout) as draft:
            for index in draft.outdated(SAMPLE.expected)["influences"][:6]:
                monkeypatch.setattr(versions, "KEPT_EVERY", 0.0 if index < (1, 1) else 30.0)
                write_chunk(draft, SAMPLE, index)
            monkeypatch.setattr(contents.Draft, "keep", lambda self, why: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        until_killed()
    monkeypatch.undo()
    assert store.unfinished() == {NAME: 4}
    draft = refresh(store, SAMPLE)
    assert (draft.resumed, draft.chunks_written) == (True, 5)
    np.testing.assert_array_equal(store.version(NAME).read("influences"), SAMPLE.values)


@pytest.mark.campaign
def test_who_is_killed_leaves_what_was_kept_for_the_next(store, address):
    folders = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, address], env={"PYTHONPATH": ":".join(folders)}
    )
    assert done.returncode == -9
    assert store.unfinished() == {NAME: 4}
    draft = refresh(store, SAMPLE)
    assert (draft.resumed, draft.chunks_written) == (True, 5)
    np.testing.assert_array_equal(store.version(NAME).read("influences"), SAMPLE.values)


def test_chunks_of_a_region_are_asked_for_beside_each_other(store, monkeypatch):
    """A bucket takes tens of milliseconds to answer; so does what stands for it here."""
    large = Sample(tuple(range(40)), tuple(range(40)), chunks=(4, 4))
    refresh(store, large)
    get, under_way, most = icechunk.IcechunkStore.get, 0, 0

    async def slow(self, *arguments):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return await get(self, *arguments)

    monkeypatch.setattr(icechunk.IcechunkStore, "get", slow)
    version = store.version(NAME)
    np.testing.assert_array_equal(version.read("influences", slice(2, 38)), large.values[2:38])
    assert most == contents.AT_ONCE == 32


def test_gc_frees_the_objects_of_versions_that_are_not_kept(store, address):
    for content in range(3):
        refresh(store, SAMPLE.with_train(dict.fromkeys(range(20), 100.0 + content)))
    repository = kept_in(store.version(NAME)).repository
    before = len(repository.place.objects(NAME))
    open_store(address, keep_versions=1).gc()
    assert len(repository.place.objects(NAME)) < before / 2
    assert set(repository.place.tags(NAME)) == plain(address).list_tags() == {"000003"}
    assert store.version(NAME).verify(checksums=True) == ()
    repository.look_again()
    assert not repository.is_doubtful(3), "what it removed itself is no damage"


def test_a_version_is_sent_to_another_process_and_read_there(store):
    refresh(store, SAMPLE)
    dataset = store.version(NAME).open()
    assert pickle.loads(pickle.dumps(dataset)).equals(dataset)


def test_main_is_put_right_where_a_kill_came_between(store, address):
    refresh(store, SAMPLE)
    refresh(store, OTHER)
    repository = plain(address)
    repository.reset_branch("main", repository.lookup_tag("000001"))
    store.restore_pointer(NAME)
    assert repository.lookup_branch("main") == repository.lookup_tag("000002")


def test_objects_that_others_collected_are_looked_into_once_and_then_known(store):
    refresh(store, SAMPLE)
    repository = kept_in(store.version(NAME)).repository
    repository._note(set(), np.append(repository._look().there, np.uint64(7)))
    repository.look_again()
    assert repository.is_doubtful(1)
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date, "all was read and is sound"
    store.restore_pointer(NAME)
    assert not repository.is_doubtful(1)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://", "names no bucket; write s3://bucket/prefix"),
        ("icechunk+file://data/store", "is no absolute path; write icechunk"),
    ],
)
def test_addresses_that_are_none_are_refused(address, words):
    with pytest.raises(StoreError, match=words):
        open_store(address)


def test_without_icechunk_the_cure_is_named(monkeypatch, address):
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    with pytest.raises(
        StoreError, match=r"needs icechunk, which is not installed; pip install 'influence-dag\["
    ):
        open_store(address)
    with pytest.raises(StoreError, match="needs icechunk and s3fs"):
        open_store("s3://bucket/digits")


def test_it_has_no_lock_files(address):
    with pytest.raises(StoreError, match=r"has no lock files, and locks is 'files'.*leave"):
        open_store(address, locks="files")


# In a bucket


def test_a_bucket_holds_a_study_as_a_folder_does(bucket):
    store: Any = open_store(f"{bucket}/some/where/tiny", lock_timeout=0.2)
    assert refresh(store, SAMPLE).chunks_written == 9
    again = open_store(f"{bucket}/some/where/tiny", lock_timeout=0.2)
    assert again.names() == [NAME]
    np.testing.assert_array_equal(again.version(NAME).open().influences, SAMPLE.values)
    with store.exclusive(NAME), pytest.raises(StoreError, match=r"by process \d+ on .*waited"):
        again.exclusive(NAME).__enter__()


def test_a_lease_of_a_dead_process_is_taken_over_and_of_another_machine_when_it_is_silent(
    bucket, monkeypatch
):
    files = places.Place(f"{bucket}/leases").files
    path = "studies/leases/.lock"
    dead = leases.this_process() | {"pid": 2**22, "began": "1", "token": "other"}
    files.pipe_file(path, json.dumps(dead).encode())
    options: dict[str, Any] = {"told": "it", "timeout": 0.1, "report": lambda said: None}
    with leases.leased(files, path, **options):
        assert json.loads(files.cat_file(path))["pid"] == leases.this_process()["pid"]
    assert not files.exists(path)
    files.pipe_file(path, json.dumps({"pid": 3, "host": "far", "since": "then"}).encode())
    with pytest.raises(StoreError, match="it is being written by process 3 on far"):
        leases.leased(files, path, **options).__enter__()
    monkeypatch.setattr(leases, "FORGOTTEN", 0.05)
    options["timeout"] = 5.0
    with leases.leased(files, path, **options):
        pass


def test_a_bucket_that_is_not_there_is_told(bucket):
    store = open_store("s3://nowhere/tiny")
    with pytest.raises(
        StoreError, match=r"locking s3://nowhere/tiny/direct/influences failed .*does not exist"
    ):
        refresh(store, replace(SAMPLE))


def test_a_forked_process_is_told_that_it_cannot_read(store):
    """It waited for ever: of Icechunk's threads it has none."""
    refresh(store, SAMPLE)
    if (child := os.fork()) == 0:
        said = 1
        try:
            store.current(NAME).read("influences")
        except StoreError as error:
            said = 0 if "forked from one that had Icechunk open" in str(error) else 2
        finally:
            os._exit(said)
    assert ended(child) == 0


def ended(child: int) -> int | None:
    """How a process has ended; None where it had to be killed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return None


class Bucket:
    """Objects in a folder, which a forked child sees as well."""

    def pipe_file(self, path: str, content: bytes, mode: str = "", **given: str) -> None:
        with open(path, "xb" if mode == "create" else "wb") as file:
            file.write(content)

    def cat_file(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def rm_file(self, path: str) -> None:
        Path(path).unlink()

    def info(self, path: str) -> dict[str, Any]:
        return {"ETag": Path(path).stat().st_mtime_ns}


def test_a_forked_child_neither_ends_a_lease_nor_waits_for_the_thread_that_renews_it(tmp_path):
    lock = tmp_path / ".lock"
    try:
        with leases.leased(Bucket(), str(lock), told="it", timeout=1, report=print):
            if (child := os.fork()) == 0:
                raise SystemExit
            assert ended(child) == 0
            assert lock.exists()
    except SystemExit:
        os._exit(0)
    assert not lock.exists()
