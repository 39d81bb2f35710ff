import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_dag.fingerprints import chunk_keys, fingerprint, grid_keys, row_fingerprints

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(trees, trees)
def test_fingerprints_agree_exactly_when_values_do(first, second):
    same = repr(_sorted(first)) == repr(_sorted(second))
    assert (fingerprint(first) == fingerprint(second)) == same


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        (([1], 2), ([1, 2],)),
        ((1,), (True,)),
        ((1,), (1.0,)),
        ((0.0,), (-0.0,)),
        (("1",), (1,)),
        ((b"x",), ("x",)),
        ((None,), ("None",)),
        ((np.zeros(4),), (np.zeros((2, 2)),)),
        ((np.zeros(2, "f4"),), (np.zeros(2, "f8"),)),
        ((np.array(["ab", "c"]),), (np.array(["a", "bc"]),)),
    ],
)
def test_different_things_have_different_fingerprints(first, second):
    assert fingerprint(*first) != fingerprint(*second)


def test_the_fingerprint_is_the_same_in_every_process():
    parts = ("influences", 3, {"damping": 0.01, "rtol": 1e-6}, [None, True], np.arange(3))
    assert fingerprint(*parts) == "a1b6f265027ed09339ad16cb9e895c38"


@pytest.mark.parametrize("dtype", ["U3", object, np.dtypes.StringDType()])
def test_text_is_compared_as_text(dtype):
    words = ["a", "bcd", ""]
    assert fingerprint(np.array(words, dtype)) == fingerprint(np.array(words, "U9"))
    assert fingerprint(row_fingerprints({"id": np.array(words, dtype)})) == fingerprint(
        row_fingerprints({"id": np.array(words, "U9")})
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_neither_memory_layout_nor_byte_order_matters(order):
    numbers = np.arange(6.0).reshape(2, 3)
    other = np.asarray(numbers, order=order).astype(">f8")
    assert fingerprint(other) == fingerprint(numbers)
    np.testing.assert_array_equal(row_fingerprints({"x": other}), row_fingerprints({"x": numbers}))


@pytest.mark.parametrize("value", [object(), {1: 2}, {3, 4}, np.array([1, None]), 1j])
def test_what_might_not_mean_the_same_tomorrow_is_refused(value):
    with pytest.raises(TypeError, match="fingerprint"):
        fingerprint(value)


def test_a_row_key_depends_on_its_own_row_alone():
    x = np.random.default_rng(0).normal(size=(6, 2, 3))
    label = np.arange(6)
    keys = row_fingerprints({"x": x, "label": label})
    assert keys.shape == (6, 16)
    assert keys.dtype == np.uint8
    assert len(np.unique(keys, axis=0)) == 6
    order = np.array([5, 1, 0, 2, 4, 3])
    shuffled = row_fingerprints({"label": label[order], "x": x[order]})
    np.testing.assert_array_equal(shuffled, keys[order])
    x[2, 1, 1] += 1
    changed = (row_fingerprints({"x": x, "label": label}) != keys).any(axis=1)
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    "other",
    [{"z": np.zeros(2)}, {"x": np.zeros(2, "f4")}, {"x": np.zeros((2, 1))}],
    ids=["name", "dtype", "shape"],
)
def test_a_row_key_depends_on_the_schema(other):
    assert (row_fingerprints(other) != row_fingerprints({"x": np.zeros(2)})).any(axis=1).all()


def test_rows_of_unequal_columns_are_refused():
    with pytest.raises(ValueError, match=r"'label': 3"):
        row_fingerprints({"x": np.zeros(2), "label": np.zeros(3)})


def test_no_rows_have_no_keys():
    assert row_fingerprints({"x": np.zeros((0, 4))}).shape == (0, 16)
    assert chunk_keys(np.zeros((0, 16), np.uint8), 4).shape == (0, 16)


def test_chunk_keys_change_with_their_own_rows_and_with_an_appended_one():
    rows = row_fingerprints({"x": np.arange(10)})
    keys = chunk_keys(rows, 4)
    assert keys.shape == (3, 16)
    longer = chunk_keys(row_fingerprints({"x": np.arange(11)}), 4)
    assert (longer != keys).any(axis=1).tolist() == [False, False, True]


def test_grid_keys_depend_on_the_prefix_and_on_their_own_row_and_column():
    tests, trains = (chunk_keys(row_fingerprints({"x": np.arange(n)}), 1) for n in (2, 3))
    keys = grid_keys("a", tests, trains)
    assert keys.shape == (2, 3, 16)
    assert len(np.unique(keys.reshape(-1, 16), axis=0)) == 6
    assert (grid_keys("b", tests, trains) != keys).any(axis=-1).all()
    trains = trains.copy()
    trains[1] += 1
    changed = (grid_keys("a", tests, trains) != keys).any(axis=-1)
    assert changed.tolist() == [[False, True, False]] * 2
