"""Whole numbers and decimals: one type over both splits, exact or refused."""

import decimal

import numpy as np
import pandas as pd
import pytest

from influence_dag.datasets.sources.row_keys import value_keys
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

FEATURES = [0.5, -1.0, 2.0]


def csv(targets, features=FEATURES) -> str:
    rows = [f"r{k},{x},{y}\n" for k, (x, y) in enumerate(zip(features, targets, strict=True))]
    return "".join(["id,a,y\n", *rows])


def splits(folder, train, test):
    (folder / "train.csv").write_text(csv(train))
    (folder / "test.csv").write_text(csv(test))
    return load_splits(DataSettings(train="train.csv", test="test.csv", id="id"), folder)


def one(folder, file, **options):
    return load_split(DataSettings(train=file, test=file, id="id", **options), "train", folder)


@pytest.mark.parametrize(
    ("train", "test", "kind"),
    [
        (("0.5", "1", "2"), ("0", "1", "2"), "f"),
        (("0", "1", "2"), ("0", "1.5", "2"), "f"),
        (("0", "1", "2"), ("0.0", "1", "2"), "f"),
        (("0", "1", "2"), ("2", "1", "0"), "i"),
    ],
)
def test_both_splits_have_targets_of_one_type(tmp_path, train, test, kind):
    read = splits(tmp_path, train, test)
    assert [split.y.dtype.kind for split in read] == [kind, kind]
    for split, written in zip(read, (train, test), strict=True):
        assert split.y.tolist() == [float(each) for each in written]


def test_rows_whose_values_stay_keep_their_keys_when_another_makes_the_column_decimal(tmp_path):
    before = splits(tmp_path, ("0", "1", "2"), ("0", "1", "2"))
    after = splits(tmp_path, ("0", "1.5", "2"), ("0", "1", "2"))
    same = [
        (a.row_keys() == b.row_keys()).all(1).tolist() for a, b in zip(before, after, strict=True)
    ]
    assert same == [[True, False, True], [True, True, True]]


def test_inputs_have_one_type_too(tmp_path):
    for name, x in {"train": np.eye(3, dtype=np.int64), "test": np.eye(3) / 2}.items():
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(3))
    read = load_splits(DataSettings(train="train.npz", test="test.npz"), tmp_path)
    assert [split.x["x"].dtype.kind for split in read] == ["f", "f"]
    np.testing.assert_array_equal(read[0].x["x"], np.eye(3))


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_a_whole_number_that_no_decimal_can_hold_is_kept_among_whole_ones(tmp_path, value):
    (tmp_path / "train.csv").write_text(csv([value, 1, 2]))
    assert one(tmp_path, "train.csv").y.tolist() == [value, 1, 2]


@pytest.mark.parametrize("value", [2**53, 2**60, -(2**53)])
def test_a_large_number_that_a_float_holds_is_exact(tmp_path, value):
    (tmp_path / "train.csv").write_text(csv([0, 1, 2], [value, 1, 0.5]))
    assert one(tmp_path, "train.csv").x["x"].ravel().tolist() == [value, 1, 0.5]


@pytest.mark.parametrize(
    ("targets", "features", "column"),
    [
        ((0, 1, 2**53 + 1), (1, 2, 3.5), None),
        ((0, 1.5, 2**53 + 1), (1, 2, 3.5), "'y'"),
        ((0, 1, 2**63), (1, 2, 3.5), "'y'"),
        ((-5, 1, 2**64 - 1), (1, 2, 3.5), "'y'"),
        ((0, 1, 2**70 + 1), (1, 2, 3.5), "'y'"),
        ((0, 1, 2), (1, 2, 2**53 + 1), "'a'"),
        ((0, 1, 2), (1, 0.5, 2**53 + 1), "'a'"),
        ((0, 1, 2), (1, 0, 2**63 + 1), "'a'"),
    ],
)
def test_a_whole_number_is_exact_or_refused_with_its_line(tmp_path, targets, features, column):
    (tmp_path / "train.csv").write_text(csv(targets, features))
    if column is None:
        assert one(tmp_path, "train.csv").y.tolist() == list(targets)
        return
    with pytest.raises(
        DataError, match=rf"train\.csv: line 4 \(id 'r2'\), column {column}: seen \d+"
    ):
        one(tmp_path, "train.csv")


def test_whole_numbers_beside_decimals_of_the_other_split_are_exact_or_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv: id 'r2', target: seen 9007199254740993"):
        splits(tmp_path, (0, 1, 2**53 + 1), (0.5, 1, 2))


def test_files_of_one_split_have_one_type(tmp_path):
    (tmp_path / "1.csv").write_text(csv([0, 1, 2]))
    (tmp_path / "2.csv").write_text(csv([0.5, 1, 2]).replace("r", "s"))
    settings = DataSettings(train="*.csv", test="1.csv", id="id")
    assert load_split(settings, "train", tmp_path).y.tolist() == [0, 1, 2, 0.5, 1, 2]
    (tmp_path / "1.csv").write_text(csv([0, 1, 2**53 + 1]))
    with pytest.raises(DataError, match=r"1\.csv: line 4 \(id 'r2'\), target: seen 90071"):
        load_split(settings, "train", tmp_path)


@pytest.mark.parametrize("role", ["y", "x"])
def test_unsigned_numbers_do_not_wrap(tmp_path, role):
    arrays = {"id": np.arange(3), "x": np.ones((3, 2), np.uint64), "y": np.ones(3, np.uint64)}
    np.savez(tmp_path / "train.npz", **arrays)
    assert one(tmp_path, "train.npz").y.tolist() == [1, 1, 1]
    arrays[role].reshape(3, -1)[1, 0] = 2**63
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=rf"train\.npz: row 1 \(id '1'\), .*: seen {2**63}"):
        one(tmp_path, "train.npz")


@pytest.mark.parametrize(
    ("values", "good"),
    [
        (np.array([1, 2**63, 3], np.uint64), False),
        (pd.array([1, 2**53 + 1, 3], "Int64"), True),
        ([decimal.Decimal(1), decimal.Decimal(2**53 + 1), decimal.Decimal(3)], True),
        ([decimal.Decimal("1.5"), decimal.Decimal(2), decimal.Decimal(3)], True),
    ],
    ids=["unsigned", "nullable", "whole decimal", "decimal"],
)
def test_numbers_of_parquet_are_exact_or_refused(tmp_path, values, good):
    frame = pd.DataFrame({"id": list("abc"), "a": 1.0, "y": values})
    frame.to_parquet(tmp_path / "train.parquet")
    if good:
        assert one(tmp_path, "train.parquet").y.tolist() == [
            float(v) if v != 2**53 + 1 else v for v in values
        ]
        return
    with pytest.raises(DataError, match=r"train\.parquet: row 1 \(id 'b'\), column 'y': seen \d+"):
        one(tmp_path, "train.parquet")


# Columns without a name


@pytest.mark.parametrize(
    ("header", "place"),
    [(",id,a,y", "column 1 of 4"), ("id,,a,y", "column 2 of 4"), ("id,a,y,", "column 4 of 4"),
     ("Unnamed: 0,id,a,y", r"column 1 of 4 \('Unnamed: 0'\)"), ("id, ,a,y", "column 2 of 4")],
)  # fmt: skip
def test_a_column_without_a_name_is_no_feature(tmp_path, header, place):
    cells = [["r", "0.5", "1"], ["s", "1.5", "0"]]
    at = next(k for k, each in enumerate(header.split(",")) if each.strip() in ("", "Unnamed: 0"))
    rows = [",".join([*row[:at], str(k), *row[at:]]) for k, row in enumerate(cells)]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(DataError, match=rf"train\.csv: {place} has no name.*index=False"):
        one(tmp_path, "train.csv")
    chosen = one(tmp_path, "train.csv", features={"columns": ["a"]})
    np.testing.assert_array_equal(chosen.x["x"].ravel(), [0.5, 1.5])


@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0"])
def test_saved_row_numbers_of_parquet_are_no_feature(tmp_path, name):
    frame = pd.DataFrame({"id": ["a", "b"], name: [0, 1], "a": [0.5, 1.0], "y": [0, 1]})
    frame.to_parquet(tmp_path / "train.parquet", index=False)
    with pytest.raises(DataError, match=rf"column 2 of 4 \('{name}'\) has no name.*columns"):
        one(tmp_path, "train.parquet")


def test_a_frame_saved_with_its_index_is_refused_and_without_is_read(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "a": [0.5, 1.0], "y": [0, 1]})
    frame.to_csv(tmp_path / "train.csv")
    with pytest.raises(DataError, match="has no name"):
        one(tmp_path, "train.csv")
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert one(tmp_path, "train.csv").feature_names == ("a",)


def test_a_row_is_known_by_its_own_numbers_whatever_others_hold():
    """Also where float64 cannot tell some of another row's, in another column, apart."""
    columns = {"a": np.array([[2**60], [1], [2]]), "b": np.array([[1], [2**60 + 1], [3]])}
    alone = [value_keys({n: each[k : k + 1] for n, each in columns.items()}) for k in range(3)]
    np.testing.assert_array_equal(value_keys(columns), np.concatenate(alone))
    y, x = np.array([2**60, 1]), {"x": np.ones((2, 1))}
    split = SplitRows(np.array(["a", "b"]), x, y, None, ("feature",), "rows")
    np.testing.assert_array_equal(split.row_keys()[1:], split.row_keys(np.array([1])))


def test_numbers_of_two_bytes_are_scaled_in_all_digits(tmp_path):
    """In their own type 0.001 times 1e-5 is 0, and 1,000 times 1,000 is infinite."""
    x = np.array([[0.001, 1000.0]], np.float16)
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(1))
    for scale in (1e-5, 1e3):
        data = DataSettings(train="rows.npz", test="rows.npz", features={"scale": scale})
        split = load_split(data, "train", tmp_path)
        np.testing.assert_array_equal(split.x["x"], x.astype(np.float64) * scale)


def test_whole_numbers_that_a_scale_would_round_are_refused(tmp_path):
    """As those of a table are: two ids of a device may be one number else."""
    x = np.array([[2**60], [2**60 + 1]])
    np.savez(tmp_path / "rows.npz", id=np.arange(2), x=x, y=np.arange(2))
    data = {"train": "rows.npz", "test": "rows.npz", "id": "id"}
    assert load_split(DataSettings(**data), "train", tmp_path).x["x"].tolist() == x.tolist()
    with pytest.raises(
        DataError, match=r"row 1 \(id '1'\), x: seen 1152921504606846977, .* float64"
    ):
        load_split(DataSettings(**data, features={"scale": 0.5}), "train", tmp_path)
