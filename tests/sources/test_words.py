"""Labels that are words, categories, truth values or dates, and columns that travel along."""

import datetime

import numpy as np
import pandas as pd
import pytest
import zarr
from pydantic import ValidationError

from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

TRAIN = ["cat", "dog", "bird", "dog"]
TEST = ["dog", "cat"]


def write_csv(folder, train=TRAIN, test=TEST, **columns):
    for split, labels in {"train": train, "test": test}.items():
        frame = pd.DataFrame({"id": [f"{split}{k}" for k in range(len(labels))]})
        frame["a"] = np.arange(len(labels)) * 1.5
        for name, values in columns.items():
            frame[name] = values[: len(labels)]
        frame["label"] = labels
        frame.to_csv(folder / f"{split}.csv", index=False)


def splits(folder, ending="csv", **options):
    data = DataSettings(
        train=f"train.{ending}", test=f"test.{ending}", **{"id": "id", "target": "label", **options}
    )
    return load_splits(data, folder)


def refused(folder, *words, **options):
    with pytest.raises(DataError) as caught:
        splits(folder, **options)
    for word in words:
        assert word in str(caught.value)


def test_words_are_numbered_in_the_order_of_the_alphabet(tmp_path):
    write_csv(tmp_path)
    train, test = splits(tmp_path)
    assert train.classes == test.classes == ("bird", "cat", "dog")
    assert train.y.tolist() == [1, 2, 0, 2]
    assert test.y.tolist() == [2, 1]
    assert train.y.dtype == np.int64
    assert test.labels.tolist() == TEST


def test_the_settings_say_the_order_of_the_outputs(tmp_path):
    write_csv(tmp_path)
    train, test = splits(tmp_path, classes=["dog", "cat", "bird"])
    assert train.y.tolist() == [1, 0, 2, 0]
    assert test.y.tolist() == [0, 1]
    assert train.labels.tolist() == TRAIN


def as_parquet(folder, name, values):
    frame = pd.DataFrame({"id": range(len(values)), "a": np.arange(len(values)) / 2})
    frame["label"] = pd.Series(values)
    frame.to_parquet(folder / f"{name}.parquet", index=False)


def as_npz(folder, name, values):
    arrays = {"id": np.arange(len(values)), "x": np.ones((len(values), 2))}
    np.savez(folder / f"{name}.npz", label=np.asarray(values), **arrays)


def as_zarr(folder, name, values):
    group = zarr.open_group(folder / f"{name}.zarr", mode="w")
    for key, array in {
        "id": np.arange(len(values)),
        "x": np.ones((len(values), 2)),
        "label": np.asarray(values, dtype=np.dtypes.StringDType()),
    }.items():
        group.create_array(key, data=array)


@pytest.mark.parametrize("write", [as_parquet, as_npz, as_zarr])
def test_every_format_has_words(tmp_path, write):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    train, test = splits(tmp_path, write.__name__.removeprefix("as_"))
    assert (train.y.tolist(), test.y.tolist()) == ([1, 2, 0, 2], [2, 1])


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (pd.Categorical(TRAIN), ("bird", "cat", "dog"), [1, 2, 0, 2]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        (pd.Categorical([3, 0, 1, 2]), None, [3, 0, 1, 2]),
        (
            pd.to_datetime(["2024-05-02", "2024-05-01", "2024-05-02", "2024-06-01"]),
            ("2024-05-01", "2024-05-02", "2024-06-01"),
            [1, 0, 1, 2],
        ),
        (
            [datetime.date(2024, 5, 2), *[datetime.date(2024, 5, 1)] * 3],
            ("2024-05-01", "2024-05-02"),
            [1, 0, 0, 0],
        ),
    ],
    ids=["categories", "truth values", "numbers as categories", "timestamps", "dates"],
)
def test_typed_columns_are_labels(tmp_path, values, names, numbers):
    as_parquet(tmp_path, "train", values)
    as_parquet(tmp_path, "test", values)
    train, test = splits(tmp_path, "parquet")
    assert train.classes == test.classes == names
    assert train.y.tolist() == test.y.tolist() == numbers


def test_truth_values_of_a_csv_are_named_and_numbered(tmp_path):
    write_csv(tmp_path, ["true", "false", "true"], ["false", "false"])
    train, test = splits(tmp_path)
    assert (train.y.tolist(), test.y.tolist()) == ([1, 0, 1], [0, 0])
    assert train.labels.tolist() == ["True", "False", "True"]
    train, _ = splits(tmp_path, classes=["true", "false"])
    assert train.y.tolist() == [0, 1, 0]


@pytest.mark.parametrize("none", [None, ["c"]])
def test_an_entry_of_the_classes_that_is_no_name_is_refused(none):
    """An empty line of a list in YAML was a class called None."""
    with pytest.raises(ValidationError, match="valid string"):
        DataSettings(train="t.csv", test="t.csv", classes=["a", "b", none])


def test_whole_numbers_are_outputs_that_the_settings_may_name(tmp_path):
    write_csv(tmp_path, [0, 2, 1], [1, 1])
    train, test = splits(tmp_path, classes=["zero", "one", "two"])
    assert train.y.tolist() == [0, 2, 1]
    assert train.labels.tolist() == ["zero", "two", "one"]
    assert test.labels.tolist() == ["one", "one"]
    assert splits(tmp_path)[0].classes is None


def test_numbers_may_be_names_in_an_order_of_their_own(tmp_path):
    write_csv(tmp_path, [5, 3, 9], [9, 3])
    train, test = splits(tmp_path, classes=[9, 5, 3])
    assert (train.y.tolist(), test.y.tolist()) == ([1, 2, 0], [0, 2])


@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ([1, 2, 3], [0, 0], ["1", "2", "3"]),
        ([0, 0], [1, 2, 3], ["1", "2", "3"]),
        ([0, 1, 2], [10, 30], [10, 20, 30]),
        (["1", "2", "c"], [0, 0], ["1", "2", "c"]),
    ],
)
def test_whole_numbers_are_names_in_both_splits_or_in_none(tmp_path, train, test, classes):
    write_csv(tmp_path, train, test)
    refused(tmp_path, "whole numbers are names of data.classes", "in one way", classes=classes)


def test_a_test_label_that_training_never_saw_is_named(tmp_path):
    write_csv(tmp_path, test=["dog", "dgo"])
    refused(tmp_path, "test.csv: line 3 (id 'test1')", "'dgo'", "did you mean 'dog'?", "bird, cat")
    refused(tmp_path, "train.csv: line 4", "'bird'", classes=["cat", "dog"])


def test_a_word_among_numbers_is_no_class(tmp_path):
    write_csv(tmp_path, [0, 1, "two", 1], [0, 1])
    refused(tmp_path, "line 4 (id 'train2')", "seen 'two', expected a number", "data.classes")
    train, _ = splits(tmp_path, classes=[0, 1, "two"])
    assert train.y.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("empty", ["", "NA", "null"])
def test_an_empty_cell_is_no_class(tmp_path, empty):
    write_csv(tmp_path, ["cat", empty, "dog"], TEST)
    refused(tmp_path, "line 3 (id 'train1')", "expected a label")
    if empty:
        assert splits(tmp_path, classes=["cat", "dog", empty])[0].y.tolist() == [0, 2, 1]


def test_words_in_one_split_and_numbers_in_the_other_are_refused(tmp_path):
    write_csv(tmp_path, [0, 1, 2], TEST)
    refused(tmp_path, "the training rows have numbers, the test rows words", "'cat'")


def test_files_of_one_split_may_have_words_that_look_like_numbers(tmp_path):
    write_csv(tmp_path, ["1", "2"], ["1b", "2"])
    data = DataSettings(
        train=["train.csv", "test.csv"],
        test="test.csv",
        id="id",
        target="label",
        classes=["1", "1b", "2"],
    )
    train = load_split(data, "train", tmp_path)
    assert train.labels.tolist() == ["1b", "2", "1", "2"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [([], "each once"), (["a", "a"], "each once"), (["a", " "], "each once"), ([True], "quotes")],
)
def test_lists_of_classes_are_checked(classes, said):
    with pytest.raises(ValueError, match=said):
        DataSettings(train="a", test="b", classes=classes)


# Columns that travel along


def test_columns_travel_along(tmp_path):
    write_csv(tmp_path, note=["a b", "", "c", "d"], group=[4, 5, 6, 7])
    train, test = splits(tmp_path, keep=["note", "group"])
    assert train.feature_names == ("a",)
    assert train.kept["note"].tolist() == ["a b", "", "c", "d"]
    assert test.kept["group"].tolist() == [4, 5]
    assert test.kept["group"].dtype == np.int64


def test_texts_travel_along_when_features_are_named(tmp_path):
    write_csv(tmp_path, note=["x", "y", "z", "w"], b=[1, 2, 3, 4])
    train, _ = splits(tmp_path, features={"columns": ["a"]})
    assert list(train.kept) == ["note"]


def test_a_text_that_nobody_named_is_refused_with_the_cure(tmp_path):
    write_csv(tmp_path, note=["x", "y", "z", "w"])
    refused(tmp_path, "column 'note': seen 'x', expected a number", "data.keep: [note]")


def test_kept_columns_are_no_part_of_what_a_row_is(tmp_path):
    keys = []
    for note in ("one", "two"):
        write_csv(tmp_path, note=[note] * 4)
        keys.append(splits(tmp_path, keep=["note"])[0].row_keys())
    np.testing.assert_array_equal(*keys)


def test_arrays_travel_along(tmp_path):
    arrays = {"x": np.ones((2, 3)), "y": np.arange(2), "path": np.array(["a.png", "b.png"])}
    np.savez(tmp_path / "t.npz", **arrays)
    data = DataSettings(train="t.npz", test="t.npz", keep=["path"])
    train, _ = load_splits(data, tmp_path)
    assert list(train.x) == ["x"]
    assert train.kept["path"].tolist() == ["a.png", "b.png"]


def test_what_cannot_travel_is_told(tmp_path):
    write_csv(tmp_path)
    refused(tmp_path, "no kept column 'nte' (data.keep)", keep=["nte"])
    with pytest.raises(ValueError, match="a coordinate already"):
        DataSettings(train="a", test="b", id="i", keep=["i"])


@pytest.mark.parametrize("write", [as_parquet, as_npz, as_zarr])
def test_names_that_look_like_numbers_are_names_as_they_are_written(tmp_path, write):
    """As numbers they would count the outputs, in another order than that of their names."""
    write(tmp_path, "train", ["00", "02", "01"])
    write(tmp_path, "test", ["01", "00"])
    train, test = splits(tmp_path, write.__name__.removeprefix("as_"), classes=["02", "00", "01"])
    assert (train.y.tolist(), test.y.tolist()) == ([1, 0, 2], [2, 1])
    assert train.labels.tolist() == ["00", "02", "01"]


def test_bytes_that_are_no_text_stay_different_classes(tmp_path):
    """As those of another encoding, whose letters would all be one that stands for none."""
    for split in ("train", "test"):
        as_npz(tmp_path, split, ["né".encode("latin-1"), "nè".encode("latin-1"), b"no"])
    train, _ = splits(tmp_path, "npz")
    assert train.classes == (r"n\xe8", r"n\xe9", "no")
    assert train.y.tolist() == [1, 0, 2]
