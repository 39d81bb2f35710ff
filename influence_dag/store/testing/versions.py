"""Published at once, kept by policy, compared: the contract's part about versions."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from influence_dag.errors import StoreError
from influence_dag.store.layout import Coordinate, Layout, Variable
from influence_dag.store.opening import open_store
from influence_dag.store.protocol import Store
from influence_dag.store.testing.sample import (
    NAME,
    SAMPLE,
    Backend,
    current,
    published,
    refresh,
    write_chunk,
)


class VersionsContract:
    """Readers see one complete version or the next; older ones stay for a while."""

    def test_what_was_published_is_there_for_whoever_opens_the_address(
        self, store: Store, backend: Backend
    ):
        refresh(store, SAMPLE)
        again = open_store(store.address)
        assert again.names() == [NAME]
        assert (again.address, again.name) == (store.address, store.name)
        np.testing.assert_array_equal(again.version(NAME).read("influences"), SAMPLE.values)
        assert open_store(backend.address).plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date

    def test_all_chunks_are_needed_before_anything_is_published(self, store: Store):
        with (
            pytest.raises(
                StoreError, match=r"8 of 9 chunks of 'influences'.*nothing was published"
            ),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            write_chunk(draft, SAMPLE, (0, 0))
        assert store.current(NAME) is None
        assert store.names() == []

    def test_planned_chunks_are_needed_under_their_planned_keys(self, store: Store):
        refresh(store, SAMPLE)
        changed = SAMPLE.with_train({0: 1.5})
        with (
            pytest.raises(StoreError, match="3 of 9 chunks"),
            store.new_version(NAME, changed.layout) as draft,
        ):
            draft.outdated(changed.expected)
        assert store.version(NAME).number == 1

    def test_the_data_version_follows_keys_and_layout_and_nothing_else(self, store: Store):
        same = replace(SAMPLE)
        others = [SAMPLE.with_train({0: 9.0}), replace(SAMPLE, attrs={"units": "x"})]
        first, second, *rest = (
            published(store, sample, f"a{i}").data_version
            for i, sample in enumerate([SAMPLE, same, *others])
        )
        assert first == second == store.version("a0").open().attrs["data_version"]
        assert len({first, *rest}) == 3

    def test_old_versions_are_kept_by_policy_and_gc_removes_more(self, store: Store):
        store = open_store(store.address, keep_versions=3)
        for content in range(5):
            refresh(store, SAMPLE.with_train({0: 100.0 + content}))
        assert [version.number for version in store.versions(NAME)] == [3, 4, 5]
        assert store.version(NAME).number == 5
        assert float(store.version(NAME, 4).open().influences[0, 0]) == 103
        with pytest.raises(StoreError, match=r"no version 1; kept are \[3, 4, 5\]"):
            store.version(NAME, 1)
        removed = open_store(store.address, keep_versions=1).gc()
        assert removed == [f"{NAME}/versions/00000{number}" for number in (3, 4)]
        assert [version.number for version in store.versions(NAME)] == [5]
        assert published(store, SAMPLE).number == 6

    def test_who_looks_on_lets_go_of_versions_that_are_removed(self, store: Store):
        writer, seen = open_store(store.address, keep_versions=1), []
        for content in range(3):
            refresh(writer, SAMPLE.with_train({0: 100.0 + content}))
            seen.append(weakref.ref(store.version(NAME)))
        gc.collect()
        assert [each() is None for each in seen] == [True, True, False]

    def test_at_least_the_current_version_is_kept(self, store: Store):
        with pytest.raises(StoreError, match="at least the current one"):
            open_store(store.address, keep_versions=0)

    def test_a_version_that_a_current_artifact_was_made_from_is_kept(self, store: Store):
        store = open_store(store.address, keep_versions=1)
        refresh(store, SAMPLE, "dataset")
        made_from = replace(SAMPLE, attrs={"dataset_version": 1})
        refresh(store, made_from, "direct/curvature")
        for content in range(3):
            refresh(store, SAMPLE.with_train({0: 100.0 + content}), "dataset")
        assert [version.number for version in store.versions("dataset")] == [1, 4]

    def test_artifacts_are_listed_and_a_missing_one_says_what_there_is(self, store: Store):
        assert store.names() == []
        refresh(store, SAMPLE)
        refresh(store, SAMPLE, "dataset")
        assert store.names() == ["dataset", NAME]
        with pytest.raises(StoreError, match=r"no 'cg/influences' yet; did you mean .*dataset,"):
            store.version("cg/influences")
        for name in ("../elsewhere", "/tmp/x", "a//b", "x/versions", ""):
            with pytest.raises(StoreError, match="cannot name an artifact"):
                store.current(name)

    def test_the_studies_beside_are_known(self, store: Store):
        refresh(store, SAMPLE, "dataset")
        other = open_store(f"{store.address}-2")
        assert other.beside("dataset") == [store.name]
        assert other.beside(NAME) == []
        refresh(other, SAMPLE, "dataset")
        assert sorted(store.beside("dataset")) == [store.name, other.name]
        assert store.names() == ["dataset"]

    def test_room_is_told_as_far_as_it_is_known(self, store: Store):
        free = store.free_bytes()
        assert free is None or free > 0

    def test_one_changed_row_is_its_chunks_and_its_values(self, store: Store):
        refresh(store, SAMPLE)
        refresh(store, SAMPLE.with_train({9: 50.0}))
        difference = store.diff(NAME, 1)
        assert difference.chunks == {"influences": [(0, 1), (1, 1), (2, 1)]}
        assert difference.added == {"test": [], "train": []}
        assert difference.removed == {"test": [], "train": []}
        assert set(difference.attrs) == {"data_version"}
        changes = difference.largest_changes("influences", 4)
        assert [change.labels["train"] for change in changes] == ["r9"] * 4
        assert all(change.after - change.before == 41 == change.size for change in changes)
        assert len(difference.largest_changes("influences", 100)) == 10

    def test_rows_and_attributes_that_came_and_went(self, store: Store):
        refresh(store, SAMPLE)
        other = replace(SAMPLE, train=tuple(range(22)), test=tuple(range(9)), attrs={"units": "x"})
        refresh(store, other)
        difference = store.diff(NAME, 1, 2)
        assert difference.added == {"test": [], "train": ["r20", "r21"]}
        assert difference.removed == {"test": ["t9"], "train": []}
        assert difference.attrs["units"] == ("loss", "x")
        assert difference.largest_changes("influences") == []
        back = store.diff(NAME, 2, 1)
        assert back.removed["train"] == ["r20", "r21"]

    def test_a_version_and_itself_do_not_differ(self, store: Store):
        refresh(store, SAMPLE)
        difference = store.diff(NAME, 1, 1)
        assert difference.chunks == {"influences": []}
        assert difference.attrs == {}
        assert difference.largest_changes("influences") == []

    def test_another_chunk_size_compares_every_chunk_by_value(self, store: Store):
        refresh(store, SAMPLE)
        refresh(store, replace(SAMPLE.with_train({3: 9.0}), chunks=(10, 20)))
        difference = store.diff(NAME, 1)
        assert difference.chunks == {"influences": [(0, 0)]}
        moved = difference.largest_changes("influences")
        assert {change.labels["train"] for change in moved} == {"r3"}

    def test_entries_are_compared_by_label_wherever_they_moved(self, store: Store):
        def publish(ids, numbers, key):
            values = np.array(numbers, float)
            variable = Variable("loss", ("train", "class"), values.shape, "float64", values.shape)
            layout = Layout((variable,), (Coordinate("train", ("train",), np.array(ids)),))
            with store.new_version("summary", layout) as draft:
                draft.write("loss", (0, 0), values, {(0, 0): bytes([key] * 16)})

        publish(["a", "b", "c"], [[1, 2], [3, 4], [5, np.nan]], 1)
        publish(["c", "", "a", "d"], [[5.5, 6], [np.nan, np.nan], [1, 0], [8, 9]], 2)
        difference = store.diff("summary", 1)
        assert difference.added == {"train": ["d"]}
        assert difference.removed == {"train": ["b"]}
        found = [(c.labels, c.before, c.after) for c in difference.largest_changes("loss")]
        assert found == [({"train": "a", "class": 1}, 2, 0), ({"train": "c", "class": 0}, 5, 5.5)]

    def test_a_refresh_has_nothing_to_restore_where_nothing_was_lost(self, store: Store):
        refresh(store, SAMPLE)
        store.restore_pointer(NAME)
        assert current(store).number == 1
