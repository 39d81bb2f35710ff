"""A writer that does not come to its end: the contract's part about interruptions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from influence_dag.store.opening import open_store
from influence_dag.store.protocol import Draft, Store
from influence_dag.store.testing.sample import (
    NAME,
    SAMPLE,
    Sample,
    current,
    published,
    refresh,
    write_chunk,
    write_outdated,
)
from influence_dag.unchanged import ChangedError

OLD = SAMPLE
NEW = replace(OLD, train=(*range(8), *range(50, 70)))  # 9 of 12 chunks are other ones
NEW_CHUNKS = 9


def interrupted_run(
    store: Store,
    sample: Sample,
    count: int,
    *,
    error: type[BaseException] = KeyboardInterrupt,
    then: Callable[[Draft], None] = lambda draft: None,
) -> Draft:
    """A run that is interrupted when it has written that many chunks (and done something then)."""
    drafts: list[Draft] = []

    def run() -> None:
        with store.new_version(NAME, sample.layout) as draft:
            drafts.append(draft)
            write_outdated(draft, sample, count)
            then(draft)
            raise error

    with pytest.raises(error):
        run()
    return drafts[0]


def set_results(draft: Draft) -> None:
    draft.set_attrs(iterations=7)
    draft.set_result("niter", ("test",), np.arange(10))


def assert_whole(store: Store, *samples: Sample) -> None:
    """The current version is sound and holds exactly one of the samples."""
    version = current(store)
    assert version.verify(checksums=True) == ()
    values = version.open().influences.values
    assert any(np.array_equal(values, sample.values) for sample in samples)


class CodeChangedError(ChangedError):
    def __init__(self) -> None:
        super().__init__("the code")


class InterruptionContract:
    """The current version stays, and the next run goes on with the chunks that were finished."""

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    @pytest.mark.parametrize("again", [False, True], ids=["the same store", "opened again"])
    def test_an_exception_in_the_computation_publishes_nothing_and_loses_nothing(
        self, store: Store, error: type[BaseException], again: bool
    ):
        refresh(store, OLD)
        interrupted_run(store, NEW, 4, error=error)
        store = open_store(store.address) if again else store
        assert_whole(store, OLD)
        assert store.unfinished() == {NAME: 4}
        assert store.version(NAME).number == 1
        draft = refresh(store, NEW)
        assert draft.resumed
        assert draft.chunks_written == NEW_CHUNKS - 4
        assert store.unfinished() == {}
        assert_whole(store, NEW)

    def test_finished_chunks_are_not_asked_for_again_however_often_it_is_interrupted(
        self, store: Store
    ):
        refresh(store, OLD)
        for _ in range(3):
            interrupted_run(store, NEW, 2)
        with store.new_version(NAME, NEW.layout) as draft:
            left = draft.outdated(NEW.expected)["influences"]
            assert len(left) == NEW_CHUNKS - 6
            for index in left:
                write_chunk(draft, NEW, index)
        assert draft.chunks_written == len(left)
        assert_whole(store, NEW)

    def test_the_first_version_of_an_artifact_is_resumed_too(self, store: Store):
        interrupted_run(store, NEW, 5)
        assert store.names() == []
        assert store.unfinished() == {NAME: 5}
        assert refresh(store, NEW).chunks_written == 12 - 5
        assert_whole(store, NEW)

    @pytest.mark.parametrize(
        "other",
        [
            NEW.with_train({9: -1.0}),
            replace(NEW, attrs={"units": "other"}),
            replace(NEW, chunks=(4, 7)),
            OLD,
        ],
        ids=["another row", "other attributes", "other chunks", "as it was"],
    )
    def test_what_an_interrupted_run_left_never_reaches_a_run_for_other_data(
        self, store: Store, other: Sample
    ):
        refresh(store, OLD)
        interrupted_run(store, NEW, 4)
        refresh(store, other)
        assert_whole(store, other)
        assert store.unfinished() == {}

    def test_what_was_interrupted_before_another_version_came_begins_anew(self, store: Store):
        refresh(store, OLD)
        interrupted_run(store, NEW, 4)
        refresh(store, replace(OLD, attrs={"units": "other"}))
        draft = refresh(store, NEW)
        assert not draft.resumed
        assert draft.chunks_written == NEW_CHUNKS
        assert_whole(store, NEW)

    def test_a_chunk_that_was_written_under_another_key_is_written_again(self, store: Store):
        """Of an interrupted run that had other keys for the same layout."""
        refresh(store, OLD)
        other = OLD.with_train({0: 3.5})
        interrupted_run(store, other, 3)
        assert refresh(store, OLD).chunks_written == 3
        assert_whole(store, OLD)

    def test_results_of_an_interrupted_run_stay_if_nothing_more_had_to_be_computed(
        self, store: Store
    ):
        refresh(store, OLD)
        interrupted_run(store, NEW, NEW_CHUNKS, then=set_results)
        version = published(store, NEW)
        assert version.number == 2
        assert version.attrs["iterations"] == 7
        assert version.open().niter.values.tolist() == list(range(10))

    def test_what_was_finished_is_found_again_whatever_it_is_called(self, store: Store):
        """Names that begin as a chunk's do, at which backends take keys apart."""

        def named_like_chunks(draft: Draft) -> None:
            draft.set_result("converged", ("test",), np.ones(10, bool))
            draft.set_result("c", (), np.array(3))
            draft.add_file("checkpoint.c", b"weights")

        interrupted_run(store, NEW, 12, then=named_like_chunks)
        draft = refresh(store, NEW)
        assert (draft.resumed, draft.chunks_written) == (True, 0)
        version = current(store)
        assert version.coordinate("converged").all()
        assert version.coordinate("c") == 3
        assert version.file("checkpoint.c") == b"weights"
        assert version.verify(checksums=True) == ()

    def test_results_of_an_interrupted_run_go_if_more_is_computed(self, store: Store):
        refresh(store, OLD)
        interrupted_run(store, NEW, 1, then=set_results)
        version = published(store, NEW)
        assert "iterations" not in version.attrs
        assert "niter" not in version.open()

    def test_nothing_is_kept_of_a_run_whose_code_was_edited_meanwhile(self, store: Store):
        refresh(store, OLD)
        interrupted_run(store, NEW, 4, error=CodeChangedError)
        assert store.unfinished() == {}
        draft = refresh(store, NEW)
        assert not draft.resumed
        assert draft.chunks_written == NEW_CHUNKS

    def test_gc_removes_what_an_interrupted_run_left(self, store: Store):
        refresh(store, OLD)
        interrupted_run(store, NEW, 1)
        assert len(store.gc()) >= 1
        assert store.unfinished() == {}
        assert refresh(store, NEW).chunks_written == NEW_CHUNKS

    def test_gc_removes_the_beginning_of_an_artifact_that_was_never_finished(self, store: Store):
        interrupted_run(store, NEW, 1)
        assert store.names() == []
        assert len(store.gc()) >= 1
        assert store.unfinished() == {}
        assert store.gc() == []
