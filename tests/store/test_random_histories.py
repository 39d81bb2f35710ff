"""Any sequence of edits, refreshes, interruptions and damage ends in what the rows say."""

import shutil
import tempfile
import uuid
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from harm import damage_file, damage_memory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stored_sample import NAME, Sample, refresh_with_results, write_chunk

from influence_dag.store import open_store
from influence_dag.store.arrays import chunk_file
from influence_dag.store.memory import discard

contents = st.integers(0, 5).map(float)


class History(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.place = self.begin()
        self.store = open_store(self.place, keep_versions=3)
        self.sample = Sample(test=(0.0, 1.0, 2.0), train=(0.0, 1.0, 2.0, 3.0, 4.0), chunks=(2, 2))
        self.published: dict[int, np.ndarray] = {}

    def begin(self) -> str:
        return tempfile.mkdtemp()

    def damage(self, version, file, edit) -> None:
        damage_file(version, file, edit)

    def teardown(self):
        shutil.rmtree(self.place)

    @rule(rows=st.lists(contents, max_size=4))
    def the_test_rows_are(self, rows):
        self.sample = replace(self.sample, test=tuple(rows))

    @rule(content=contents)
    def a_row_is_appended(self, content):
        self.sample = replace(self.sample, train=(*self.sample.train, content))

    @precondition(lambda self: self.sample.train)
    @rule(data=st.data(), content=contents)
    def a_row_is_edited(self, data, content):
        position = data.draw(st.integers(0, len(self.sample.train) - 1))
        self.sample = self.sample.with_train({position: content})

    @rule(count=st.integers(1, 4))
    def the_last_rows_are_removed(self, count):
        self.sample = replace(self.sample, train=self.sample.train[:-count])

    @rule(chunks=st.tuples(st.integers(1, 3), st.integers(1, 3)), units=st.sampled_from("ab"))
    def the_settings_are(self, chunks, units):
        self.sample = replace(self.sample, chunks=chunks, attrs={"units": units})

    @rule(count=st.integers(0, 6))
    def a_refresh_is_interrupted(self, count):
        with (
            suppress(KeyboardInterrupt),
            self.store.new_version(NAME, self.sample.layout) as draft,
        ):
            for index in draft.outdated(self.sample.expected)["influences"][:count]:
                write_chunk(draft, self.sample, index)
            raise KeyboardInterrupt

    @precondition(lambda self: self.published)
    @rule(data=st.data(), harm=st.sampled_from(["delete", "rewrite"]))
    def a_chunk_of_the_current_version_is_damaged(self, data, harm):
        version = self.store.version(NAME)
        if chunks := list(np.ndindex(version.variables["influences"].grid)):
            chunk = chunk_file("influences", data.draw(st.sampled_from(chunks)))
            content = b"not a chunk" if harm == "rewrite" else None
            with suppress(FileNotFoundError, KeyError):  # removed before
                self.damage(version, chunk, lambda _: content)
            self.published.pop(version.number, None)

    @rule()
    def it_is_refreshed(self):
        plan = self.store.plan(NAME, self.sample.layout, self.sample.expected)
        replaced = self.store.unfinished().get(NAME, 0)  # perhaps chunks that are wanted again
        draft = refresh_with_results(self.store, self.sample)
        version = draft.version
        assert draft.chunks_written <= plan.computed + replaced
        assert self.store.plan(NAME, self.sample.layout, self.sample.expected).up_to_date
        assert version.verify(checksums=True) == ()
        np.testing.assert_array_equal(version.open().influences.values, self.sample.values)
        np.testing.assert_array_equal(version.open().total, self.sample.values.sum(axis=1))
        assert version.open().sizes["train"] == len(self.sample.train)
        assert version.open().attrs["units"] == self.sample.attrs["units"]
        self.published[version.number] = self.sample.values

    @rule()
    def garbage_is_collected(self):
        self.store.gc()

    @invariant()
    def older_versions_are_what_they_were(self):
        kept = {version.number: version for version in self.store.versions(NAME)}
        assert len(kept) <= 3
        for number in kept.keys() & self.published.keys():
            stored = kept[number].open().influences.values
            np.testing.assert_array_equal(stored, self.published[number])


class HistoryInMemory(History):
    def begin(self) -> str:
        return f"memory://{uuid.uuid4().hex}"

    def damage(self, version, file, edit) -> None:
        damage_memory(version, file, edit)

    def teardown(self):
        discard(self.place)


TestHistories = History.TestCase
TestHistories.settings = settings(max_examples=8, stateful_step_count=15)
TestHistoriesInMemory = HistoryInMemory.TestCase
TestHistoriesInMemory.settings = settings(max_examples=8, stateful_step_count=15)


@pytest.mark.campaign
class TestManyHistories(History.TestCase):
    settings = settings(max_examples=300, stateful_step_count=30, derandomize=False)


@pytest.mark.campaign
class TestManyHistoriesInMemory(HistoryInMemory.TestCase):
    settings = settings(max_examples=300, stateful_step_count=30, derandomize=False)
