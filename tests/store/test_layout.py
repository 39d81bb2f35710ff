import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_dag.errors import StoreError
from influence_dag.store import (
    Coordinate,
    Layout,
    Variable,
    pair_chunks,
    row_chunks,
)

MIB = 2**20


def test_chunks_of_influences_are_balanced_between_rows_and_columns():
    assert pair_chunks(2_000, 50_000, itemsize=4) == (128, 2048)
    assert pair_chunks(50_000, 2_000, itemsize=4) == (2048, 128)


def test_chunks_of_perturbations_hold_one_test_row_for_sixteen_training_rows():
    assert pair_chunks(297, 1_500, itemsize=4, values_per_pair=64) == (16, 256)
    assert pair_chunks(10_000, 10_000, itemsize=4, values_per_pair=64) == (32, 512)


def test_chunk_lengths_given_by_the_user_are_kept():
    assert pair_chunks(300, 1_500, itemsize=4, override={"test": 50, "train": 60}) == (50, 60)
    assert pair_chunks(300, 1_500, itemsize=4, override={"train": 60})[1] == 60


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from([4, 8]),
    st.sampled_from([1, 8, 64, 3072, 2**14]),
)
def test_chunks_are_one_to_four_mebibytes_or_the_whole_array(n_test, n_train, itemsize, values):
    test, train = pair_chunks(n_test, n_train, itemsize=itemsize, values_per_pair=values)
    size = test * train * values * itemsize
    assert size <= 2 * 4 * MIB
    whole = test >= n_test and train >= n_train
    assert whole or size >= MIB / 2
    assert math.log2(test).is_integer()
    assert math.log2(train).is_integer()


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_row_chunks_hold_at_least_a_row_and_about_a_mebibyte(n, row_bytes):
    rows = row_chunks(n, row_bytes)
    assert 1 <= rows < 2 * n
    assert rows == 1 or rows * row_bytes <= 2 * 4 * MIB


def test_a_growing_data_set_keeps_its_chunks():
    chunks = {pair_chunks(297, n, itemsize=4, values_per_pair=64) for n in range(1_500, 1_700)}
    assert len(chunks) == 1


def variable(name="v", dims=("a", "b"), shape=(3, 4), dtype="float32", chunks=(2, 2), **options):
    return Variable(name, dims, shape, dtype, chunks, **options)


def test_a_chunk_region_ends_at_the_array():
    assert variable().grid == (2, 2)
    assert variable().region((1, 1)) == (slice(2, 3), slice(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3,)}, "one entry a dimension"),
        ({"chunks": (0, 2)}, "chunks"),
        ({"name": "a b"}, "cannot name"),
        ({"name": "blocks.npz"}, "cannot name"),
        ({"chunks": (2**15, 2**15)}, "smaller chunks"),
        ({"dtype": "int64", "max_relative_error": 0.1}, "only floats"),
    ],
)
def test_a_variable_that_cannot_be_stored_is_refused(options, message):
    with pytest.raises(StoreError, match=message):
        variable(**options)


def test_a_layout_whose_parts_disagree_is_refused():
    with pytest.raises(StoreError, match="'b' has 2 along 'a', others have 3"):
        Layout((variable(),), (Coordinate("b", ("a",), np.arange(2)),))
    with pytest.raises(StoreError, match="twice"):
        Layout((variable(), variable()))
    with pytest.raises(StoreError, match=r"values of shape \(2,\) for dims"):
        Coordinate("a", ("a", "b"), np.arange(2))


@pytest.mark.parametrize(
    "other",
    [
        Layout((variable(shape=(3, 5)),)),
        Layout((variable(dtype="float64"),)),
        Layout((variable(attrs={"units": "loss"}),)),
        Layout((variable(),), (Coordinate("a", ("a",), np.array(["x", "y", "z"])),)),
        Layout((variable(),), (), {"damping": 0.1}),
    ],
    ids=["shape", "dtype", "attrs", "coordinate", "layout attrs"],
)
def test_whatever_a_reader_would_notice_is_in_the_fingerprint(other):
    assert other.fingerprint != Layout((variable(),)).fingerprint


def test_provenance_is_not_in_the_fingerprint():
    first, second = (Layout((variable(),), (), {}, {"time": t}) for t in ("noon", "midnight"))
    assert first.fingerprint == second.fingerprint


def test_more_labels_than_are_written_at_once_are_refused_with_their_number():
    many = np.broadcast_to(np.int64(0), 2**28)  # which takes 8 bytes here
    with pytest.raises(StoreError, match=r"'train': 268,435,456 labels are 2,147,483,648 bytes"):
        Coordinate("train", ("train",), many)
