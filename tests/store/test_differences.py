from dataclasses import replace

import numpy as np
from stored_sample import NAME, Sample, refresh

from influence_dag.store import Coordinate, Layout, Variable

OLD = Sample()


def test_one_changed_row_is_its_chunks_and_its_values(store):
    refresh(store, OLD)
    refresh(store, OLD.with_train({9: 50.0}))
    difference = store.diff(NAME, 1)
    assert difference.chunks == {"influences": [(0, 1), (1, 1), (2, 1)]}
    assert difference.added == {"test": [], "train": []}
    assert difference.removed == {"test": [], "train": []}
    assert set(difference.attrs) == {"data_version"}
    changes = difference.largest_changes("influences", 4)
    assert [change.labels["train"] for change in changes] == ["r9"] * 4
    assert all(change.after - change.before == 41 == change.size for change in changes)
    assert len(difference.largest_changes("influences", 100)) == 10


def test_rows_and_attributes_that_came_and_went(store):
    refresh(store, OLD)
    refresh(store, replace(OLD, train=tuple(range(22)), test=tuple(range(9)), attrs={"units": "x"}))
    difference = store.diff(NAME, 1, 2)
    assert difference.added == {"test": [], "train": ["r20", "r21"]}
    assert difference.removed == {"test": ["t9"], "train": []}
    assert difference.attrs["units"] == ("loss", "x")
    assert difference.largest_changes("influences") == []
    back = store.diff(NAME, 2, 1)
    assert back.removed["train"] == ["r20", "r21"]


def test_a_version_and_itself_do_not_differ(store):
    refresh(store, OLD)
    difference = store.diff(NAME, 1, 1)
    assert difference.chunks == {"influences": []}
    assert difference.attrs == {}
    assert difference.largest_changes("influences") == []


def test_another_chunk_size_compares_every_chunk_by_value(store):
    refresh(store, OLD)
    refresh(store, replace(OLD.with_train({3: 9.0}), chunks=(10, 20)))
    difference = store.diff(NAME, 1)
    assert difference.chunks == {"influences": [(0, 0)]}
    assert {change.labels["train"] for change in difference.largest_changes("influences")} == {"r3"}


def test_entries_are_compared_by_label_wherever_they_moved(store):
    def publish(ids, values, key):
        values = np.array(values, float)
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
    assert found == [
        ({"train": "a", "class": 1}, 2, 0),
        ({"train": "c", "class": 0}, 5, 5.5),
    ]
