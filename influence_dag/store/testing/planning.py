"""What has to be computed, and that it alone is: the contract's part about plans."""

from dataclasses import replace

import numpy as np
import pytest

from influence_dag.errors import StoreError
from influence_dag.store.layout import Layout, Variable
from influence_dag.store.protocol import Store
from influence_dag.store.testing.sample import (
    ALL_CHUNKS,
    NAME,
    SAMPLE,
    Sample,
    current,
    published,
    refresh,
)

SHAPES = {
    "columns fill the last chunk": (
        replace(SAMPLE, train=tuple(range(24))),
        [(0, 2), (1, 2), (2, 2)],
    ),
    "columns in a new chunk": (
        replace(SAMPLE, train=tuple(range(27))),
        [(i, j) for i in range(3) for j in (2, 3)],
    ),
    "fewer whole chunks": (replace(SAMPLE, train=tuple(range(16))), []),
    "fewer columns in a chunk": (replace(SAMPLE, train=tuple(range(15))), [(0, 1), (1, 1), (2, 1)]),
    "rows appended": (replace(SAMPLE, test=tuple(range(12))), [(2, 0), (2, 1), (2, 2)]),
    "one chunk of rows left": (replace(SAMPLE, test=tuple(range(3))), [(0, 0), (0, 1), (0, 2)]),
    "no row left": (replace(SAMPLE, test=()), []),
    "chunk size": (replace(SAMPLE, chunks=(4, 10)), [(i, j) for i in range(3) for j in range(2)]),
    "dtype": (replace(SAMPLE, dtype="float64"), ALL_CHUNKS),
    "attributes": (replace(SAMPLE, attrs={"units": "margin"}), []),
}


class PlanningContract:
    """Keys that there ought to be against keys that are stored, and nothing else decides."""

    def test_everything_is_planned_before_the_first_version(self, store: Store):
        plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
        assert plan.outdated == {"influences": ALL_CHUNKS}
        assert plan.reasons == {"not computed": 9}
        assert (plan.reused, plan.computed, plan.up_to_date) == (0, 9, False)
        assert store.current(NAME) is None
        assert (store.names(), store.unfinished()) == ([], {}), "planning writes nothing"

    def test_nothing_changed_means_no_new_version(self, store: Store):
        first = published(store, SAMPLE)
        plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
        assert plan.up_to_date
        assert plan.reused == 9
        draft = refresh(store, SAMPLE)
        assert draft.chunks_written == 0
        assert [version.number for version in store.versions(NAME)] == [1]
        assert draft.version is not None
        assert draft.version.address == first.address
        assert store.unfinished() == {}

    def test_one_changed_row_rewrites_its_own_chunks_and_keeps_the_others(self, store: Store):
        refresh(store, SAMPLE)
        changed = SAMPLE.with_train({9: -5.0})
        plan = store.plan(NAME, changed.layout, changed.expected)
        assert plan.outdated == {"influences": [(0, 1), (1, 1), (2, 1)]}
        assert plan.reasons == {"inputs changed": 3}
        draft = refresh(store, changed)
        assert draft.chunks_written == 3
        assert 0 < draft.bytes_written < 9 * 4 * 8 * 4
        np.testing.assert_array_equal(current(store).array("influences")[...], changed.values)
        np.testing.assert_array_equal(store.version(NAME, 1).read("influences"), SAMPLE.values)

    @pytest.mark.parametrize(("sample", "outdated"), SHAPES.values(), ids=SHAPES)
    def test_a_changed_shape_computes_only_what_it_touches(
        self, store: Store, sample: Sample, outdated: list
    ):
        refresh(store, SAMPLE)
        plan = store.plan(NAME, sample.layout, sample.expected)
        assert plan.outdated == {"influences": outdated}
        assert plan.layout_changed
        draft = refresh(store, sample)
        version = current(store)
        assert version.number == 2
        assert draft.chunks_written == len(outdated)
        np.testing.assert_array_equal(version.open().influences.values, sample.values)
        assert version.verify(checksums=True) == ()
        older = store.version(NAME, 1).open()
        np.testing.assert_array_equal(older.influences.values, SAMPLE.values)

    def test_an_edge_chunk_is_not_reused_for_other_rows_even_under_its_old_key(self, store: Store):
        refresh(store, SAMPLE)
        longer = replace(SAMPLE, train=tuple(range(22)))
        keys = {"influences": store.version(NAME).keys("influences")}
        plan = store.plan(NAME, longer.layout, keys)
        assert plan.outdated == {"influences": [(0, 2), (1, 2), (2, 2)]}

    @pytest.mark.parametrize(
        ("expected", "message"),
        [
            ({}, "expected keys of"),
            ({"influences": np.ones((3, 2, 16), np.uint8)}, "grid of chunks needs"),
            ({"influences": np.ones((3, 3, 16), np.int64)}, "int64"),
            ({"influences": np.zeros((3, 3, 16), np.uint8)}, "zeros"),
        ],
        ids=["no variable", "another grid", "another type", "no keys"],
    )
    def test_a_plan_needs_one_key_a_chunk(self, store: Store, expected: dict, message: str):
        with pytest.raises(StoreError, match=message):
            store.plan(NAME, SAMPLE.layout, expected)

    def test_several_variables_scalars_and_planned_coordinates(self, store: Store):
        variables = (
            Variable("loss", ("train",), (5,), "float64", (4,)),
            Variable("total", (), (), "float64", ()),
            Variable("niter", ("train",), (5,), "int64", (4,), coordinate=True),
        )
        keys = {v.name: np.full((*v.grid, 16), 7, np.uint8) for v in variables}
        with store.new_version("summary", Layout(variables)) as draft:
            wanted = {"loss": [(0,), (1,)], "total": [()], "niter": [(0,), (1,)]}
            assert draft.outdated(keys) == wanted
            both = {(0,): bytes([7] * 16), (1,): bytes([7] * 16)}
            draft.write("loss", (0,), np.arange(5.0), both)
            draft.write("niter", (0,), np.arange(5), both)
            draft.write("total", (), np.array(10.0), {(): bytes([7] * 16)})
            np.testing.assert_array_equal(draft.read("loss", slice(1, 3)), [1, 2])
        dataset = current(store, "summary").open()
        assert set(dataset.data_vars) == {"loss", "total"}
        assert dataset.niter.values.tolist() == [0, 1, 2, 3, 4]
        assert float(dataset.total) == 10
        assert store.plan("summary", Layout(variables), keys).up_to_date
