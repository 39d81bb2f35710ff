"""Several at once: the contract's part about writers and readers beside each other."""

import re
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from influence_dag.errors import StoreError
from influence_dag.store.opening import open_store
from influence_dag.store.protocol import Draft, Store
from influence_dag.store.testing.interruption import NEW, NEW_CHUNKS, OLD, assert_whole
from influence_dag.store.testing.sample import (
    ALL_CHUNKS,
    NAME,
    SAMPLE,
    current,
    published,
    refresh,
    write_chunk,
    write_outdated,
)


def in_threads(*work: Callable[[], object]) -> None:
    """Do it all at once; what one of them raises is raised here."""
    failed: list[BaseException] = []

    def run(each: Callable[[], object]) -> None:
        try:
            each()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]


class SharingContract:
    """One writer an artifact; readers need no lock and keep what they have opened."""

    def test_a_second_writer_is_refused_with_the_name_of_the_first(self, store: Store):
        refresh(store, OLD)
        impatient = open_store(store.address, lock_timeout=0.1)
        told = f"{re.escape(store.address)}/{NAME} is being written by .*process .*waited 0.1 s"
        with store.new_version(NAME, NEW.layout) as draft:
            with pytest.raises(StoreError, match=told), impatient.new_version(NAME, OLD.layout):
                pass
            with pytest.raises(StoreError, match=told):
                impatient.gc()
            assert impatient.plan(NAME, OLD.layout, OLD.expected).up_to_date, "readers need no lock"
            np.testing.assert_array_equal(impatient.version(NAME).read("influences"), OLD.values)
            refresh(impatient, OLD, "another/artifact")
            write_outdated(draft, NEW)
        assert_whole(store, NEW)

    def test_who_waits_says_at_once_for_whom_and_then_finds_the_work_done(self, store: Store):
        said: list[str] = []
        patient = open_store(store.address, lock_timeout=30, report=said.append)
        begun, waiting = threading.Event(), threading.Event()
        drafts: list[Draft] = []

        def first() -> None:
            with store.new_version(NAME, NEW.layout) as draft:
                begun.set()
                assert waiting.wait(30)
                write_outdated(draft, NEW)

        def second() -> None:
            assert begun.wait(30)
            drafts.append(refresh(patient, NEW))

        def watcher() -> None:
            deadline = time.monotonic() + 30
            while not said and time.monotonic() < deadline:
                time.sleep(0.01)
            waiting.set()

        in_threads(first, second, watcher)
        (line,) = said
        assert line.startswith(f"{NAME}: waiting for ")
        assert line.endswith(f", which writes {store.address}/{NAME}")
        assert drafts[0].chunks_written == 0
        assert [version.number for version in store.versions(NAME)] == [1]
        assert_whole(store, NEW)

    def test_several_writers_at_once_do_the_work_once(self, store: Store):
        refresh(store, OLD)
        written: list[int] = []

        def work() -> None:
            mine = open_store(store.address, lock_timeout=30)
            written.append(refresh(mine, NEW).chunks_written)

        in_threads(*[work] * 4)
        assert sorted(written) == [0, 0, 0, NEW_CHUNKS]
        assert [version.number for version in store.versions(NAME)] == [1, 2]
        assert_whole(store, NEW)

    def test_who_computes_at_once_keeps_others_out_and_may_write_itself(self, store: Store):
        impatient = open_store(store.address, lock_timeout=0.1)
        with store.exclusive(NAME):
            with (
                pytest.raises(StoreError, match=r"is being written by .*waited 0\.1 s"),
                impatient.exclusive(NAME),
            ):
                pass
            refresh(store, OLD)
        with impatient.exclusive(NAME):
            assert current(impatient).number == 1

    def test_different_chunks_are_written_from_several_threads(self, store: Store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.outdated(SAMPLE.expected)
            in_threads(
                *(lambda index=index: write_chunk(draft, SAMPLE, index) for index in ALL_CHUNKS)
            )
        assert draft.chunks_written == 9
        assert_whole(store, SAMPLE)

    def test_a_dataset_held_open_keeps_reading_its_version(self, store: Store):
        held = published(store, SAMPLE).open()
        refresh(store, SAMPLE.with_train(dict.fromkeys(range(20), 1e3)))
        np.testing.assert_array_equal(held.influences.values, SAMPLE.values)
        assert store.version(NAME).open().influences.values[0, 0] == 1e3

    def test_readers_during_refreshes_see_whole_versions(self, store: Store):
        samples = [SAMPLE.with_train({i: 100.0 + i for i in range(k, 20, 3)}) for k in range(3)]
        refresh(store, samples[0])
        done = threading.Event()

        def write() -> None:
            try:
                mine = open_store(store.address, keep_versions=50)
                for k in range(12):
                    refresh(mine, samples[(k + 1) % 3])
            finally:
                done.set()

        def read() -> None:
            mine, last = open_store(store.address), 0
            while not done.is_set():
                version = mine.version(NAME)
                values = version.read("influences")
                assert any(np.array_equal(values, sample.values) for sample in samples)
                assert version.number >= last
                last = version.number

        in_threads(write, read, read)
        assert current(store).number == 13

    def test_whose_version_was_removed_reads_it_still_or_says_so(self, store: Store):
        held = published(store, SAMPLE).open()
        brief = open_store(store.address, keep_versions=1)
        for content in range(3):
            refresh(brief, SAMPLE.with_train({0: 9.0 + content}))
        try:
            found = held.influences.values.tolist()
        except StoreError as error:
            found = str(error)
        gone = "version 000001 was removed while it was open"
        assert found == SAMPLE.values.tolist() or gone in found
