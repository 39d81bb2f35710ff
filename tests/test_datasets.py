import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from influence_dag.datasets.content import source_fingerprint
from influence_dag.datasets.sources.digests import FileDigests
from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError, StudyError
from influence_dag.study.data import DataSettings

ROOT = Path(__file__).parents[1]
CSV = "id,a,b,label\nr0,1.5,2,0\nr1,-3,4e-1,1\nr2,0,7,2\n"


def settings(train: str = "train.csv", test: str = "test.csv", **options) -> DataSettings:
    defaults = {"id": "id", "target": "label"} if train.endswith((".csv", ".parquet")) else {}
    return DataSettings(train=train, test=test, **{**defaults, **options})


def load_csv(folder: Path, text: str, **options):
    (folder / "train.csv").write_text(text)
    return load_split(settings(**options), "train", folder)


def refused(folder: Path, text: str, *words: str, **options) -> None:
    """The text is refused with an error that contains all the words."""
    with pytest.raises(DataError) as caught:
        load_csv(folder, text, **options)
    for word in ("train.csv", *words):
        assert word in str(caught.value)


def arrays(n: int = 4, **others) -> dict[str, np.ndarray]:
    numbers = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return {"x": numbers, "y": np.arange(n), **others}


def save_npz(folder: Path, contents: dict) -> None:
    np.savez(folder / "train.npz", **contents)


def save_zarr(folder: Path, contents: dict) -> None:
    group = zarr.open_group(folder / "train.zarr", mode="w")
    for name, values in contents.items():
        group.create_array(name, data=values)


ARRAY_FILES = pytest.mark.parametrize(
    ("file", "save"), [("train.npz", save_npz), ("train.zarr", save_zarr)], ids=["npz", "zarr"]
)


# What a good file becomes


def test_a_table_becomes_float64_features_and_integer_labels(tmp_path):
    split = load_csv(tmp_path, CSV)
    assert split.ids.tolist() == ["r0", "r1", "r2"]
    np.testing.assert_array_equal(split.x["x"], [[1.5, 2], [-3, 0.4], [0, 7]])
    assert split.x["x"].dtype == np.float64
    assert split.y.dtype == np.int64
    assert (split.feature_names, split.dims) == (("a", "b"), ("feature",))
    assert split.source == "train.csv"
    assert split.x["x"].flags.writeable
    assert split.y.flags.writeable  # torch warns of arrays that are not


def test_a_decimal_target_stays_floating(tmp_path):
    split = load_csv(tmp_path, CSV, target="a", features={"columns": ["b"]})
    np.testing.assert_array_equal(split.y, [1.5, -3.0, 0.0])
    assert split.x["x"].shape == (3, 1)


def test_shape_scale_and_column_order_are_applied(tmp_path):
    features = {"columns": ["b", "a"], "shape": [2, 1], "dims": ["u", "v"], "scale": 0.5}
    split = load_csv(tmp_path, CSV, features=features)
    np.testing.assert_array_equal(split.x["x"][:, :, 0], [[1, 0.75], [0.2, -1.5], [3.5, 0]])
    assert split.dims == ("u", "v")
    assert split.feature_names == ("b", "a")


@pytest.mark.parametrize("identity", ["007", "NA", "1e5", "null"])
def test_ids_are_text_as_it_stands(tmp_path, identity):
    assert load_csv(tmp_path, CSV.replace("r1", identity)).ids[1] == identity


def test_parquet_reads_as_csv_does(tmp_path):
    expected = load_csv(tmp_path, CSV)
    frame = pd.read_csv(tmp_path / "train.csv")
    for table in (frame, frame.set_index("id")):
        table.to_parquet(tmp_path / "train.parquet")
        split = load_split(settings("train.parquet"), "train", tmp_path)
        np.testing.assert_array_equal(split.row_keys(), expected.row_keys())
        assert split.ids.tolist() == expected.ids.tolist()


def test_parquet_columns_may_be_numbered(tmp_path):
    frame = pd.DataFrame({0: [1.0, 2.0], 1: [3.0, 4.0], 2: [0, 1]})
    frame.to_parquet(tmp_path / "train.parquet")
    data = DataSettings(train="train.parquet", test="-", target="2")
    assert load_split(data, "train", tmp_path).feature_names == ("0", "1")


def test_without_an_id_the_position_is_the_id(tmp_path):
    pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    split = load_split(DataSettings(train="train.parquet", test="-"), "train", tmp_path)
    assert split.ids.tolist() == ["0", "1"]


@ARRAY_FILES
def test_arrays_keep_their_shape_and_precision(tmp_path, file, save):
    save(tmp_path, arrays(id=np.array([10, 11, 12, 13])))
    split = load_split(settings(file), "train", tmp_path)
    assert split.x["x"].shape == (4, 2, 3)
    assert split.x["x"].dtype == np.float32
    assert split.ids.tolist() == ["10", "11", "12", "13"]
    assert split.dims == ("feature_0", "feature_1")


@ARRAY_FILES
def test_several_arrays_are_named_inputs(tmp_path, file, save):
    tokens = np.array([[1, 2], [3, 4]])
    save(tmp_path, {"tokens": tokens, "mask": np.ones((2, 2)), "y": np.array([0.5, 1.5])})
    split = load_split(settings(file), "train", tmp_path)
    assert set(split.x) == {"tokens", "mask"}
    assert split.x["tokens"].dtype == np.int64
    assert split.dims == ()


def test_columns_choose_among_arrays(tmp_path):
    save_npz(tmp_path, {"a": np.ones((2, 3)), "b": np.zeros((2, 1)), "y": np.arange(2)})
    chosen = load_split(settings("train.npz", features={"columns": ["b"]}), "train", tmp_path)
    np.testing.assert_array_equal(chosen.x["x"], np.zeros((2, 1)))


def write_callable(folder: Path, body: str) -> DataSettings:
    (folder / "made_rows.py").write_text(f"import torch\n{body}\n")
    sys.modules.pop("made_rows", None)
    return settings("made_rows:make", "made_rows:make")


def test_a_callable_makes_a_map_style_dataset(tmp_path):
    data = write_callable(
        tmp_path,
        "def make():\n"
        "    return torch.utils.data.TensorDataset(torch.arange(6.).view(3, 2), torch.arange(3))",
    )
    split = load_split(data, "train", tmp_path)
    np.testing.assert_array_equal(split.x["x"], [[0, 1], [2, 3], [4, 5]])
    assert split.y.tolist() == [0, 1, 2]
    assert split.ids.tolist() == ["0", "1", "2"]


def test_a_callable_may_name_its_inputs_and_ids(tmp_path):
    data = write_callable(
        tmp_path,
        "class Pairs(list):\n    names = ['p', 'q']\n"
        "def make():\n    return Pairs([({'left': torch.ones(2), 'right': 1}, 0.5)] * 2)",
    )
    split = load_split(data.model_copy(update={"id": "names"}), "train", tmp_path)
    assert split.ids.tolist() == ["p", "q"]
    assert {name: x.shape for name, x in split.x.items()} == {"left": (2, 2), "right": (2,)}


# Hashes


def test_row_keys_follow_content_not_position_or_id(tmp_path):
    header, *rows = CSV.strip().split("\n")
    before = load_csv(tmp_path, CSV).row_keys()
    moved = "\n".join([header, rows[2], rows[0].replace("r0", "new"), rows[1]])
    after = load_csv(tmp_path, moved).row_keys()
    np.testing.assert_array_equal(after, before[[2, 0, 1]])


@pytest.mark.parametrize("edit", [("0.4", "0.41"), ("4e-1,1", "4e-1,0")], ids=["x", "y"])
def test_an_edited_row_changes_its_own_key_alone(tmp_path, edit):
    before = load_csv(tmp_path, CSV.replace("4e-1,1", "0.4,1")).row_keys()
    edited = CSV.replace("4e-1,1", "0.4,1").replace(edit[0].replace("4e-1", "0.4"), edit[1])
    after = load_csv(tmp_path, edited).row_keys()
    assert (before != after).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("file", ["train.csv", "test.csv"])
def test_the_source_fingerprint_is_that_of_the_bytes(tmp_path, file):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(CSV)
    before = source_fingerprint(settings(), tmp_path)
    assert source_fingerprint(settings(), tmp_path) == before
    (tmp_path / file).write_text(CSV.replace("1.5", "1.50"))
    assert source_fingerprint(settings(), tmp_path) != before


def test_the_source_fingerprint_of_a_folder_and_of_a_callable(tmp_path):
    save_zarr(tmp_path, arrays())
    data = settings("train.zarr", "train.zarr")
    before = source_fingerprint(data, tmp_path)
    save_zarr(tmp_path, arrays(y=np.array([0, 1, 2, 9])))
    assert source_fingerprint(data, tmp_path) != before
    made = [
        source_fingerprint(write_callable(tmp_path, f"def make(): return [(1., {y})]"), tmp_path)
        for y in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]


# What a bad file is told


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"data\.test: no file .*trian\.csv.*mean 'train\.csv'"):
        load_split(settings(test="trian.csv"), "test", tmp_path)


def test_an_unknown_format_lists_the_known(tmp_path):
    (tmp_path / "train.tsv").write_text(CSV)
    with pytest.raises(DataError, match=r"'\.tsv'.*\.csv, .*\.parquet, .*\.npz, \.zarr"):
        load_split(settings("train.tsv"), "train", tmp_path)


def test_duplicate_ids_are_listed_with_their_lines(tmp_path):
    text = CSV.replace("r2", "r0") + "\n\nr1,1,1,1\n"  # two blank lines count as lines
    refused(tmp_path, text, "2 ids", "'r0' at line 2, line 4", "'r1' at line 3, line 7")


def test_missing_ids_are_listed_with_their_lines(tmp_path):
    refused(tmp_path, CSV.replace("r1", " ").replace("r2", ""), "no id at line 3, line 4")


def test_line_numbers_survive_quoted_newlines(tmp_path):
    text = 'id,a,label\n"r\n0",1,0\nr1,,1\n'
    refused(tmp_path, text, "line 4 (id 'r1')", "column 'a'", "an empty cell")


def test_an_absent_id_column_suggests_a_name(tmp_path):
    refused(tmp_path, CSV.replace("id,", "Id,"), "no id column 'id'", "mean 'Id'", "has Id, a, b")


def test_a_csv_needs_an_id(tmp_path):
    refused(tmp_path, CSV, "needs `data.id`", "id, a, b, label", id=None)


def test_an_absent_target_suggests_a_name(tmp_path):
    refused(tmp_path, CSV, "no target column 'labels'", "mean 'label'", target="labels")


def test_an_absent_feature_is_named(tmp_path):
    features = {"columns": ["a", "c"]}
    refused(tmp_path, CSV, "no feature column 'c' (data.features.columns)", features=features)


@pytest.mark.parametrize(
    ("cell", "seen"),
    [
        ("", "an empty cell or NaN"),
        ("nan", "an empty cell or NaN"),
        ("inf", "inf"),
        ("-inf", "-inf"),
    ],
)
def test_a_feature_that_is_not_finite_is_found(tmp_path, cell, seen):
    words = ("line 3 (id 'r1')", "column 'a'", f"seen {seen}", "1 such rows")
    refused(tmp_path, CSV.replace("-3", cell), *words)


def test_a_feature_that_is_not_a_number_is_found(tmp_path):
    words = ("line 3 (id 'r1')", "column 'a'", "seen 'three'", "expected a number")
    refused(tmp_path, CSV.replace("-3", "three"), *words)


@pytest.mark.parametrize(
    ("cell", "seen"), [("", "an empty cell"), ("inf", "inf"), ("cat", "'cat'")]
)
def test_a_target_that_is_not_a_number_is_found(tmp_path, cell, seen):
    refused(tmp_path, CSV.replace("7,2", f"7,{cell}"), "line 4 (id 'r2')", seen)


@pytest.mark.parametrize("text", ["id,a,b,label\n", "id,a,b,label"])
def test_an_empty_split_is_refused(tmp_path, text):
    refused(tmp_path, text, "train split has no rows")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "the file is empty"),
        (CSV + "r3,1,2,3,4\n", "line 5 has 5 cells, and the header names 4 columns"),
        (CSV.replace("r0,1.5,2,0", "r0,1.5,2,0,9"), "line 2 has 5 cells"),
        (CSV + '"r\n3",1,2,3\nr4,1,2,3,4\n', "line 7 has 5 cells"),
        (CSV.replace(",b,", ",a,"), "names the column 'a' more than once"),
        ("id,label\nr0,1\n", "no feature columns"),
    ],
    ids=["empty", "long", "long first", "long behind a newline", "repeated column", "no features"],
)
def test_a_malformed_table_is_refused(tmp_path, text, word):
    refused(tmp_path, text, word)


NOTES = "id,text,a,label\n{}r8,x,1,1\n"


@pytest.mark.parametrize(
    "rows",
    [
        'r1,"so good,1,0\nr2,fine,2,1\nr3,ok" yes,3,0\n',
        'r1,"so good,1,0\nr2,fine",2,1\n',
        'r1,"so good,1,0\nr2,"fine",2,1\n',
    ],
    ids=["whole rows", "two halves", "before another quote"],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path, rows):
    """The row had the numbers and the label of the last one that was swallowed."""
    (tmp_path / "train.csv").write_text(NOTES.format(rows))
    told = "line 2: the text in column 'text' is . lines long and holds whole rows: a quote"
    with pytest.raises(DataError, match=told):
        load_split(settings(keep=["text"]), "train", tmp_path)


def test_texts_of_several_lines_are_texts(tmp_path):
    rows = 'r1,"so good,\nand 1, 0",2,0\nr2,"Total, 5\nand, so, on",2,1\n'
    (tmp_path / "train.csv").write_text(NOTES.format(rows))
    kept = load_split(settings(keep=["text"]), "train", tmp_path).kept["text"]
    assert kept.tolist() == ["so good,\nand 1, 0", "Total, 5\nand, so, on", "x"]


def test_the_line_of_a_fault_is_told_behind_a_long_text(tmp_path):
    refused(tmp_path, CSV.replace("r0", "r" * 200_000).replace("7,2", "7,cat"), "line 4 (id 'r2')")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"id,\xff\xfe\n")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        load_split(settings(), "train", tmp_path)


def test_the_shape_has_to_hold_the_features(tmp_path):
    words = ("2 features a row (a … b)", "[2, 3]", "6 places")
    refused(tmp_path, CSV, *words, features={"shape": [2, 3]})


def test_dims_have_to_name_every_axis(tmp_path):
    refused(tmp_path, CSV, "['u', 'v'] names 2 axes", "a row has 1", features={"dims": ["u", "v"]})


@pytest.mark.parametrize("dim", ["train", "blocks"])
def test_dims_may_not_take_another_axis_name(tmp_path, dim):
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(DataError, match=f"'{dim}' is the name of another axis"):
        load_split(settings(features={"dims": [dim]}), "train", tmp_path)


@pytest.mark.parametrize(
    ("dim", "told"),
    [
        ("train_length", "name of another array"),
        ("test_x", "name of another array"),
        ("feature_mean", "name of another array"),
        ("perturbation_influences", "name of another array"),
        ("two words", "cannot name a stored array"),
        ("a/b", "cannot name a stored array"),
        ("_hidden", "cannot name a stored array"),
        ("", "cannot name a stored array"),
    ],
)
def test_dims_are_names_that_results_can_have(tmp_path, dim, told):
    """`train_length` was read as a column of the rows, when the model had been fitted."""
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(DataError, match=f"'{dim}' .*{told}"):
        load_split(settings(features={"dims": [dim]}), "train", tmp_path)


@ARRAY_FILES
@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"x": np.ones((2, 2))}, "no target column 'y'"),
        ({"y": np.ones(2)}, "no array of inputs"),
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, "disagree on the number of rows: x 3, target 2"),
        ({"x": np.ones((2, 2)), "y": np.ones(2), "id": np.array([0.5, 1])}, "ids are float64"),
        ({"x": np.ones((2, 2)), "y": np.ones(2), "id": np.array([1, 1])}, "'1' at row 0, row 1"),
        ({"x": np.array([[1, 2], [3, np.nan]]), "y": np.ones(2)}, r"row 1, x\[1\]: seen nan"),
        ({"x": np.ones((2, 2)), "y": np.array([0, np.inf])}, "row 1, target: seen inf"),
        ({"x": np.ones((2, 2), complex), "y": np.ones(2)}, "x holds complex numbers"),
    ],
    ids=["target", "input", "length", "float id", "same id", "nan", "target inf", "complex"],
)
def test_bad_arrays_are_refused(tmp_path, file, save, contents, words):
    save(tmp_path, contents)
    with pytest.raises(DataError, match=rf"{file}.*{words}"):
        load_split(settings(file), "train", tmp_path)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "zarr"])
def test_a_file_of_another_kind_is_refused(tmp_path, suffix):
    (tmp_path / f"train.{suffix}").write_text("not that")
    with pytest.raises(DataError, match=rf"train\.{suffix}: not a readable"):
        load_split(settings(f"train.{suffix}"), "train", tmp_path)


def test_shape_and_dims_are_for_one_input(tmp_path):
    save_npz(tmp_path, {"a": np.ones((2, 3)), "b": np.zeros((2, 1)), "y": np.arange(2)})
    for features, field in (({"shape": [3]}, "shape"), ({"dims": ["u"]}, "dims")):
        with pytest.raises(DataError, match=rf"data\.features\.{field} is for one input"):
            load_split(settings("train.npz", features=features), "train", tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def make(): return 3", "returned an int; expected a map-style dataset"),
        ("def make(): return []", "is empty"),
        ("def make(): return [1.0]", r"row 0 is a float; expected a pair \(x, y\)"),
        ("def make(): return [((1.0, 2.0), 0)]", "row 0 has a tuple as x"),
        ("def make(): return [([], 0)]", "row 0 has a list as x"),
        (
            "def make(): return [(torch.ones(2), 0), (torch.ones(3), 0)]",
            r"row 1 has x of shape \(3,\), row 0 has \(2,\)",
        ),
        (
            "def make(): return [({'a': 1.0}, 0), ({'b': 1.0}, 0)]",
            r"row 1 has inputs \['b'\], row 0 has \['a'\]",
        ),
    ],
    ids=["not a dataset", "empty", "not a pair", "tuple", "list", "ragged", "other names"],
)
def test_a_bad_callable_is_refused(tmp_path, body, words):
    with pytest.raises(DataError, match=words):
        load_split(write_callable(tmp_path, body), "train", tmp_path)


def test_a_callable_without_the_named_ids_is_refused(tmp_path):
    data = write_callable(tmp_path, "def make(): return [(1.0, 0)]")
    with pytest.raises(DataError, match=r"no attribute 'names' \(data.id\)"):
        load_split(data.model_copy(update={"id": "names"}), "train", tmp_path)


def test_a_callable_that_does_not_import_names_the_field(tmp_path):
    with pytest.raises(StudyError, match=r"data\.train: nowhere:make: no module 'nowhere'"):
        load_split(settings("nowhere:make"), "train", tmp_path)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (CSV.replace(",b,", ",c,"), r"only .* has b, only .* has c;"),
        ("id,b,a,label\nr0,1,2,0\n", "same feature columns in different orders"),
    ],
    ids=["names", "order"],
)
def test_splits_that_disagree_are_refused(tmp_path, other, words):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text(other)
    with pytest.raises(DataError, match=rf"test\.csv and train\.csv .*{words}"):
        load_splits(settings(), tmp_path)


def test_splits_of_other_shapes_are_refused(tmp_path):
    save_npz(tmp_path, arrays())
    np.savez(tmp_path / "test.npz", x=np.ones((2, 3, 3)), y=np.arange(2))
    with pytest.raises(DataError, match=r"shape of x: \(3, 3\) and \(2, 3\) a row"):
        load_splits(settings("train.npz", "test.npz"), tmp_path)
    np.savez(tmp_path / "test.npz", u=np.ones((2, 3)), v=np.ones((2, 3)), y=np.arange(2))
    with pytest.raises(DataError, match="disagree on the inputs"):
        load_splits(settings("train.npz", "test.npz"), tmp_path)


# The bundled data


def test_the_bundled_data_is_what_the_script_writes(tmp_path):
    command = [sys.executable, ROOT / "data/make_data.py", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.csv"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / file).read_bytes() == (ROOT / "data" / file).read_bytes(), file


def test_the_bundled_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    features = {"shape": [8, 8], "dims": ["row", "col"], "scale": 1 / 16}
    data = settings("data/digits/train.csv", "data/digits/test.csv", features=features)
    train, test = load_splits(data, ROOT)
    bunch = load_digits()
    images = np.concatenate([train.x["x"], test.x["x"]])
    np.testing.assert_array_equal(images * 16, bunch.images)
    np.testing.assert_array_equal(np.concatenate([train.y, test.y]), bunch.target)
    assert (train.ids[0], train.ids[-1], test.ids[-1]) == ("train-0000", "train-1499", "test-0296")


def test_the_bundled_diabetes_features_are_standardised():
    data = settings("data/diabetes/train.csv", "data/diabetes/test.csv", target="progression")
    train, test = load_splits(data, ROOT)
    assert (len(train), len(test)) == (353, 89)
    assert train.feature_names is not None
    assert train.feature_names[:4] == ("age", "sex", "bmi", "bp")
    np.testing.assert_allclose(train.x["x"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.x["x"].std(0), 1, atol=1e-6)
    assert train.y.dtype == np.float64


def test_units_of_many_rows_in_float32_keep_their_digits(tmp_path):
    """Sums over 200,000 rows in float32 had a deviation of 87 instead of 1."""
    x = 50_000 + np.random.default_rng(0).normal(size=(200_000, 3)).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=np.zeros(len(x)))
    data = settings("t.npz", "t.npz", target="y", features={"standardise": True})
    seen = load_splits(data, tmp_path)[0].x["x"]
    assert (abs(seen.mean(axis=0)) < 1 / 8).all()
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=0.05)


def test_every_message_says_the_file_relative_to_the_project(tmp_path):
    with pytest.raises(DataError) as caught:
        load_csv(tmp_path, CSV.replace("-3", "nan"))
    assert not re.search(re.escape(str(tmp_path)), str(caught.value))


# Several files


HEADER, *LINES = CSV.splitlines(keepends=True)


@pytest.fixture
def parts(tmp_path) -> Path:
    """The rows of `CSV` in two files."""
    (tmp_path / "part-1.csv").write_text(HEADER + "".join(LINES[:2]))
    (tmp_path / "part-2.csv").write_text(HEADER + LINES[2])
    (tmp_path / "train.csv").write_text(CSV)
    return tmp_path


def several(train: Any = "part-*.csv", **options) -> DataSettings:
    return DataSettings(train=train, test="-", **{"id": "id", "target": "label", **options})


@pytest.mark.parametrize(
    "train",
    ["part-*.csv", ["part-2.csv", "part-1.csv"], ["part-?.csv", "part-1.csv"], "**/part-*.csv"],
    ids=str,
)
def test_several_files_are_their_rows_together(parts, train):
    split = load_split(several(train), "train", parts)
    whole = load_split(several("train.csv"), "train", parts)
    assert split.ids.tolist() == ["r0", "r1", "r2"]
    np.testing.assert_array_equal(split.row_keys(), whole.row_keys())
    assert split.source == (train if isinstance(train, str) else ", ".join(train))


def test_a_file_that_is_called_like_a_pattern_is_that_file(parts):
    (parts / "part-[2].csv").write_text(CSV)
    assert len(load_split(several("part-[2].csv"), "train", parts)) == 3


def test_a_file_without_rows_is_no_trouble_among_others(parts):
    (parts / "part-0.csv").write_text(HEADER)
    split = load_split(several(), "train", parts)
    assert (len(split), split.y.dtype) == (3, np.int64)
    for part in (1, 2):
        (parts / f"part-{part}.csv").unlink()
    with pytest.raises(DataError, match="no rows"):
        load_split(several(), "train", parts)


@ARRAY_FILES
def test_several_array_files(tmp_path, file, save):
    for part in (0, 1):
        save(tmp_path, arrays(id=np.arange(4) + 4 * part))
        (tmp_path / file).rename(tmp_path / f"{part}-{file}")
    split = load_split(DataSettings(train=f"*-{file}", test="-"), "train", tmp_path)
    assert split.ids.tolist() == list("01234567")
    assert split.x["x"].shape == (8, 2, 3)


def test_numbers_that_travel_along_are_numbers_whatever_stands_in_which_file(parts):
    """A gap makes decimals of a file's whole numbers."""
    (parts / "part-1.csv").write_text("id,a,b,n,label\nr0,1,2,7,0\nr1,1,2,8,1\n")
    (parts / "part-2.csv").write_text("id,a,b,n,label\nr2,1,2,,2\nr3,1,2,9,2\n")
    split = load_split(several(keep=["n"]), "train", parts)
    np.testing.assert_array_equal(split.kept["n"], [7, 8, np.nan, 9])
    exact = f"id,a,b,n,label\nr0,1,2,{2**53 + 1},0\n"
    (parts / "part-1.csv").write_text(exact)
    split = load_split(several(keep=["n"]), "train", parts)
    assert split.kept["n"].tolist() == [str(2**53 + 1), "", "9.0"]


@pytest.mark.parametrize("role", ["label", "id", "note"])
def test_a_text_file_within_an_archive_is_no_array_in_any_role(tmp_path, role):
    there = arrays(id=np.arange(4), note=np.arange(4), label=np.arange(4))
    del there[role]
    np.savez(tmp_path / "t.npz", **there)
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as archive:
        archive.writestr(role, "text")
    data = settings("t.npz", target="label", id="id", keep=["note"])
    with pytest.raises(DataError, match=f"{role} is a file, not an array; take it out"):
        load_split(data, "train", tmp_path)


def refused_parts(folder: Path, second: str, *words: str, **options) -> None:
    (folder / "part-2.csv").write_text(second)
    with pytest.raises(DataError) as caught:
        load_split(several(**options), "train", folder)
    for word in words:
        assert word in str(caught.value)


def test_an_id_in_two_files_is_told_with_both_lines(parts):
    words = ["part-*.csv: 1 ids appear more than once", "'r1' at part-1.csv line 3, part-2.csv"]
    refused_parts(parts, HEADER + LINES[2] + "\n" + LINES[1], *words, "part-2.csv line 4")


def test_a_bad_number_is_told_with_its_own_file_and_line(parts):
    bad = LINES[2].replace("7", "seven")
    refused_parts(parts, HEADER + bad, "part-2.csv: line 2 (id 'r2'), column 'b': seen 'seven'")
    refused_parts(parts, HEADER + LINES[2].replace("7", ""), "part-2.csv line 2 (id 'r2')", "empty")


def test_files_with_different_columns_are_refused_with_both_names(parts):
    pair = "part-2.csv and part-1.csv differ in their feature columns"
    refused_parts(parts, CSV.replace(",b,", ",c,"), pair, "c, b in one alone")
    swapped = "id,b,a,label\nr2,7,0,2\n"
    refused_parts(parts, swapped, pair, "their order", "data.features.columns")
    split = load_split(several(features={"columns": ["a", "b"]}), "train", parts)
    np.testing.assert_array_equal(split.x["x"][2], [0, 7])


def test_several_files_need_ids(parts):
    for part in (1, 2):
        table = pd.read_csv(parts / f"part-{part}.csv").drop(columns="id")
        table.to_parquet(parts / f"part-{part}.parquet")
    with pytest.raises(DataError, match=r"part-1\.parquet: several files need `data\.id`"):
        load_split(several("part-*.parquet", id=None), "train", parts)


def test_names_that_nothing_has_are_told(parts):
    with pytest.raises(DataError, match=r"data\.train: no file in .* matches 'prat-\*\.csv'"):
        load_split(several("prat-*.csv"), "train", parts)
    with pytest.raises(DataError, match=r"no file .*part-3\.csv; did you mean 'part-\d\.csv'"):
        load_split(several(["part-1.csv", "part-3.csv"]), "train", parts)
    for names, said in (([], "an empty list"), (["a:b", "c.csv"], "not the callable 'a:b'")):
        with pytest.raises(ValueError, match=said):
            several(names)


def test_a_new_file_that_matches_is_another_content(parts):
    data = DataSettings(train="part-*.csv", test="train.csv", id="id", target="label")
    before = source_fingerprint(data, parts)
    assert source_fingerprint(data, parts) == before
    (parts / "part-3.csv").write_text(HEADER + "r3,1,1,1\n")
    after = source_fingerprint(data, parts)
    assert after != before
    (parts / "part-3.csv").write_text(HEADER + "r3,1,1,2\n")
    assert source_fingerprint(data, parts) not in (before, after)


@pytest.mark.parametrize("size", [1e154, 1e155, 1e300, 1e-170, 1e-300])
def test_units_whose_squares_no_float_holds_are_refused(tmp_path, size):
    """A deviation of infinity or 0 left the column as it was, or NaN."""
    x = np.random.default_rng(0).normal(size=(9, 2)) * [size, 1]
    np.savez(tmp_path / "t.npz", x=x, y=np.zeros(len(x)))
    data = settings("t.npz", "t.npz", target="y", features={"standardise": True})
    with pytest.raises(DataError, match=r"largest number is .*, whose square is beyond float64"):
        load_splits(data, tmp_path)


@pytest.mark.parametrize("save", [save_npz, save_zarr])
@pytest.mark.parametrize(("x", "y"), [(">f8", ">i4"), (">f4", ">f8"), (np.longdouble, "<i8")])
def test_numbers_of_other_machines_are_those_of_this_one(tmp_path, save, x, y):
    """They ended in an error of torch's own."""
    if save is save_zarr and x is np.longdouble:
        pytest.skip("Zarr has none")
    values = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    save(tmp_path, {"x": values.astype(x), "y": np.arange(4).astype(y)})
    name = f"train.{save.__name__.removeprefix('save_')}"
    rows = load_splits(settings(name, name, target="y"), tmp_path)[0]
    np.testing.assert_array_equal(rows.x["x"], values)
    assert rows.y.tolist() == [0, 1, 2, 3]
    for array in (rows.x["x"], rows.y):
        assert array.dtype.isnative
        assert array.dtype.itemsize <= 8


def test_rows_without_a_number_are_refused(tmp_path):
    save_npz(tmp_path, {"x": np.empty((4, 0)), "y": np.arange(4)})
    with pytest.raises(DataError, match=r"x has shape \(4, 0\), rows without a number"):
        load_splits(settings("train.npz", "train.npz", target="y"), tmp_path)


@pytest.mark.parametrize("left", ["[1]", "null", '"x"', '{"FILE": 3}', '{"FILE": [1, 2]}', "{"])
def test_what_was_remembered_of_files_and_is_none_of_it_is_not_believed(tmp_path, left):
    file, memory = tmp_path / "t.csv", tmp_path / "remembered.json"
    file.write_text(CSV)
    memory.write_text(left.replace("FILE", str(file.resolve())))
    assert FileDigests(memory)[file] == FileDigests()[file]
