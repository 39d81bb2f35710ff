"""Slots: a row keeps its place, a removed one leaves a hole, an edit touches its own chunks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_dag.datasets.assignment import AxisChange, assign_slots, fresh_axis
from influence_dag.datasets.slots import SPLITS, Axis, kept_name, shown_label
from influence_dag.errors import DataError
from influence_dag.store import ArtifactStore, Layout, Variable

Table = dict[str, int]  # id → content


def columns(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, keys and labels as a stage has them; the label tells the content."""
    ids = np.array(list(table), dtype=np.dtypes.StringDType())
    contents = np.array(list(table.values()), dtype=np.uint64)
    return ids, contents + np.uint64(1000), contents.astype(np.int64)


def fresh(table: Table) -> Axis:
    return fresh_axis("train", *columns(table))[0]


def then(axis: Axis, table: Table) -> tuple[Axis, np.ndarray, AxisChange]:
    return assign_slots(axis, *columns(table))


def rows(axis: Axis) -> dict[int, tuple[str, int]]:
    return {int(s): (str(axis.ids[s]), int(axis.labels[s])) for s in axis.slots}


TEN = {name: number for number, name in enumerate("abcdefghij")}


def test_a_first_axis_is_in_file_order():
    axis, source = fresh_axis("train", *columns(TEN))
    assert rows(axis) == dict(enumerate(TEN.items()))
    assert source.tolist() == list(range(10))
    assert axis.count == len(axis) == 10


def test_order_in_the_file_does_not_matter():
    axis, source, change = then(fresh(TEN), dict(reversed(TEN.items())))
    assert rows(axis) == rows(fresh(TEN))
    assert source.tolist() == list(range(9, -1, -1))
    assert not change


def test_a_removed_row_leaves_a_hole_and_nothing_moves():
    less = {name: number for name, number in TEN.items() if name != "d"}
    axis, source, change = then(fresh(TEN), less)
    assert rows(axis) == {slot: row for slot, row in rows(fresh(TEN)).items() if slot != 3}
    assert axis.valid.tolist() == [slot != 3 for slot in range(10)]
    assert source.tolist() == [0, 1, 2, -1, 3, 4, 5, 6, 7, 8]
    assert change == AxisChange(removed=1)
    assert axis.count == 9


def test_a_new_row_fills_a_hole_before_the_axis_grows():
    less = {name: number for name, number in TEN.items() if name not in "dg"}
    axis, _, _ = then(fresh(TEN), less)
    axis, _, change = then(axis, {"x": 20, **less, "y": 21, "z": 22})
    assert {name: slot for slot, (name, _) in rows(axis).items() if name in "xyz"} == {
        "x": 3,
        "y": 6,
        "z": 10,
    }
    assert change == AxisChange(added=3)


def test_a_row_that_comes_back_gets_its_slot_back():
    less = {name: number for name, number in TEN.items() if name not in "dg"}
    axis, _, _ = then(fresh(TEN), less)
    axis, _, change = then(axis, {"new": 30, **TEN})
    assert {rows(axis)[slot][0] for slot in (3, 6)} == {"d", "g"}
    assert rows(axis)[10] == ("new", 30)
    assert change == AxisChange(added=3)


def test_a_changed_row_stays_where_it_is():
    axis, _, change = then(fresh(TEN), TEN | {"c": 99})
    assert rows(axis)[2] == ("c", 99)
    assert change == AxisChange(changed=1)


@pytest.mark.parametrize(("removed", "compacted"), [(2, False), (3, True)])
def test_above_a_quarter_of_holes_the_axis_is_compacted(removed, compacted):
    left = dict(list(TEN.items())[removed:])
    axis, source, change = then(fresh(TEN), left)
    assert (len(axis) == len(left)) == compacted
    assert axis.count == 10 - removed
    assert change == AxisChange(removed=removed)
    assert [str(axis.ids[s]) for s in axis.slots] == list(left)
    assert source[axis.slots].tolist() == list(range(len(left)))


def test_an_axis_without_labels_stays_without():
    ids, keys, _ = columns(TEN)
    axis, _ = fresh_axis("test", ids, keys, None)
    assert assign_slots(axis, ids[:9], keys[:9], None)[0].labels is None


def test_only_chunks_with_an_edited_row_have_another_digest():
    before, _ = fresh_axis("train", *columns(TEN))
    less = {name: number for name, number in TEN.items() if name != "b"}
    after, _, _ = then(before, less | {"h": 70})
    differs = (before.digests(3) != after.digests(3)).any(axis=1)
    assert differs.tolist() == [True, False, True, False]
    back, _, _ = then(after, TEN)
    assert np.array_equal(back.digests(3), before.digests(3))


def test_the_fingerprint_is_of_rows_and_not_of_holes():
    less = {name: number for name, number in TEN.items() if name != "b"}
    assert then(fresh(TEN), less)[0].fingerprint == fresh(less).fingerprint
    assert fresh(less).fingerprint != fresh(TEN).fingerprint
    assert fresh(TEN | {"a": 5}).fingerprint != fresh(TEN).fingerprint


def test_a_renamed_row_costs_no_computation():
    renamed = {("zz" if name == "c" else name): number for name, number in TEN.items()}
    before = fresh(TEN)
    after, _, change = then(before, renamed)
    assert change == AxisChange(added=1, removed=1)
    assert np.array_equal(before.digests(4), after.digests(4))
    assert str(after.ids[2]) == "zz"


def test_there_is_no_previous_axis_to_begin_with():
    with pytest.raises(ValueError, match="fresh_axis"):
        assign_slots(None, *columns(TEN))


@pytest.mark.parametrize("labelled", [True, False])
def test_an_axis_reads_back_as_it_was_stored(tmp_path, labelled):
    ids, keys, labels = columns({"häß": 1, "b" * 50: 2, "c": 3, "d": 4, "007": 5})
    axis, _ = fresh_axis("train", ids, keys, labels if labelled else None)
    keep = [0, 1, 3, 4]
    axis, _, _ = assign_slots(axis, ids[keep], keys[keep], labels[keep] if labelled else None)
    values = Variable("values", ("train",), (5,), "float64", (2,))
    with ArtifactStore(tmp_path).new_version("some", Layout((values,), axis.coordinates)) as new:
        chunks = {(k,): bytes([k + 1]) * 16 for k in range(3)}
        new.write("values", (0,), np.zeros(5), chunks)
    read = Axis.read(ArtifactStore(tmp_path).version("some"), "train")
    assert np.array_equal(read.ids, axis.ids)
    assert np.array_equal(read.keys, axis.keys)
    assert np.array_equal(read.valid, axis.valid)
    assert read.fingerprint == axis.fingerprint
    assert (read.labels is not None) == labelled


tables = st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.integers(0, 9), min_size=1)


@given(st.lists(tables, min_size=2, max_size=8))
def test_whatever_is_edited(history):
    axis = fresh(history[0])
    for before, table in pairwise(history):
        previous, (axis, source, change) = axis, then(axis, table)
        contents = list(table.items())
        assert sorted(rows(axis).values()) == sorted(contents), "every row once, nothing else"
        assert {slot: contents[source[slot]] for slot in axis.slots} == rows(axis)
        assert (source[~axis.valid] == -1).all()
        assert (axis.keys[~axis.valid] == 0).all()
        assert len(axis) - axis.count <= len(axis) // 4
        stayed = before.keys() & table.keys()
        assert change.removed == len(before) - len(stayed)
        assert change.added == len(table) - len(stayed)
        assert change.changed == sum(before[name] != table[name] for name in stayed)
        if len(axis) >= len(previous):
            was = {name: slot for slot, (name, _) in rows(previous).items()}
            assert {name: was[name] for name in stayed} == {
                name: slot for slot, (name, _) in rows(axis).items() if name in stayed
            }


def test_no_column_that_travels_along_is_called_as_an_array_of_ours_is(finished_project):
    """A column of texts called `loss` ended the run at the summary, which names an array so."""
    store = ArtifactStore(finished_project.store)
    versions = map(store.version, store.names())
    ours = {name for version in versions for name in (*version.variables, *version.coordinates)}
    suffixes = {
        name.removeprefix(f"{split}_")
        for name in ours
        for split in SPLITS
        if name.startswith(f"{split}_")
    }
    assert {"label", "loss", "predicted", "sum", "y"} <= suffixes
    assert [each for each in suffixes if kept_name(each) == each] == []


def test_columns_whose_coordinates_would_be_called_the_same_are_refused():
    """One of them was lost."""
    kept = {name: np.array(["b"] * 10) for name in ("free text", "free_text")}
    told = "'free text' and 'free_text' would travel along under one name, free_text; rename one"
    with pytest.raises(DataError, match=told):
        fresh_axis("train", *columns(TEN), kept)
    with pytest.raises(DataError, match=told):
        assign_slots(fresh(TEN), *columns(TEN), kept)


@given(st.lists(st.floats(allow_nan=False) | st.integers(), min_size=2, max_size=2, unique=True))
def test_labels_that_differ_are_shown_as_two(pair):
    one, other = map(shown_label, pair)
    assert one != other
    assert one == shown_label(np.array(pair[0]).item())
