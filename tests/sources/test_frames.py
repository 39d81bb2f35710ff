"""Tables of polars and Hugging Face's datasets, by the libraries themselves where they are."""

import sys

import numpy as np
import pytest

from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

POLARS = """
import polars as pl

FRAME = pl.DataFrame({
    "id": ["r0", "r1", "r2"], "a": [1.5, -2.25, 1e-3], "n": [1, 2, 3],
    "label": ["no", "yes", "no"],
})


def frame(): return FRAME
def categories(): return FRAME.with_columns(pl.col("label").cast(pl.Enum(["yes", "no"])))
def dates(): return FRAME.with_columns(label=pl.date(2024, 5, pl.col("n").cast(pl.Int8)))
def truth(): return FRAME.with_columns(label=pl.col("a") > 0)
def lists(): return FRAME.select("id", "label", x=pl.concat_list("a", "n"))
def arrays(): return FRAME.select("id", "label", x=pl.concat_arr("a", pl.col("n").cast(float)))
def gap(): return FRAME.with_columns(n=pl.Series([1, None, 3]))
def drawn(): return FRAME.with_columns(a=float(__import__("time").perf_counter_ns()))
def lazy(): return FRAME.lazy()
"""
X = [[1.5, 1], [-2.25, 2], [1e-3, 3]]


def read(folder, name, code, call, **options):
    (folder / f"{name}.py").write_text(code)
    sys.modules.pop(name, None)
    data = DataSettings(
        train=f"{name}:{call}", test="-", **{"id": "id", "target": "label", **options}
    )
    return load_split(data, "train", folder)


@pytest.mark.parametrize("call", ["frame", "categories", "lists", "arrays", "dates", "truth"])
def test_frames_of_polars(tmp_path, call):
    pytest.importorskip("polars")
    split = read(tmp_path, "polars_rows", POLARS, call)
    np.testing.assert_array_equal(split.x["x"], X)
    assert split.ids.tolist() == ["r0", "r1", "r2"]
    labels = {
        "dates": ["2024-05-01", "2024-05-02", "2024-05-03"],
        "truth": ["True", "False", "True"],
    }.get(call, ["no", "yes", "no"])
    assert split.labels.tolist() == labels
    assert split.feature_names == (None if call in ("lists", "arrays") else ("a", "n"))


def test_what_is_wrong_with_a_frame_of_polars_is_told(tmp_path):
    pytest.importorskip("polars")
    with pytest.raises(DataError, match=r"row 1 \(id 'r1'\), column 'n': seen an empty cell"):
        read(tmp_path, "polars_rows", POLARS, "gap")
    with pytest.raises(DataError, match=r"LazyFrame; expected .* a table .*collect\(\)"):
        read(tmp_path, "polars_rows", POLARS, "lazy")
    with pytest.raises(DataError, match="is another one when it is read again"):
        read(tmp_path, "polars_rows", POLARS, "drawn")


DATASETS = """
import datasets
from datasets import ClassLabel, Dataset, Features, Sequence, Value

ROWS = {"id": ["r0", "r1", "r2"], "text": ["a b", "c", "d"], "label": [1, 0, 1],
        "x": [[1.5, 1.0], [-2.25, 2.0], [1e-3, 3.0]]}
NAMED = Features({"id": Value("string"), "text": Value("string"),
                  "label": ClassLabel(names=["zero", "a class"]), "x": Sequence(Value("float64"))})


def rows(): return Dataset.from_dict(ROWS, features=NAMED)
def selected(): return rows().select([2, 0])
def formatted(): return rows().with_format("torch")
def of_columns(): return Dataset.from_dict({
    "id": ROWS["id"], "label": ["no", "yes", "no"], "a": [1.5, -2.25, 1e-3], "n": [1, 2, 3]})
def unlabelled(): return Dataset.from_dict({**ROWS, "label": [1, -1, 0]}, features=NAMED)
def splits(): return datasets.DatasetDict(train=rows())
"""


@pytest.mark.parametrize("call", ["rows", "selected", "formatted"])
def test_a_hugging_face_dataset_names_its_classes(tmp_path, call):
    """`ClassLabel`'s order is that of the numbers, not the alphabet's."""
    pytest.importorskip("datasets")
    rows = [2, 0] if call == "selected" else [0, 1, 2]
    split = read(tmp_path, "hugging_rows", DATASETS, call, keep=("text",))
    np.testing.assert_array_equal(split.x["x"], np.array(X)[rows])
    assert split.classes == ("zero", "a class")
    assert split.y.tolist() == np.array([1, 0, 1])[rows].tolist()
    assert split.labels.tolist() == np.array(["a class", "zero", "a class"])[rows].tolist()
    assert split.kept["text"].tolist() == np.array(["a b", "c", "d"])[rows].tolist()
    own = read(tmp_path, "hugging_rows", DATASETS, call, keep=("text",), classes=["p", "q"])
    assert own.classes == ("p", "q")
    assert own.y.tolist() == split.y.tolist()


def test_a_hugging_face_dataset_of_columns_is_a_table(tmp_path):
    pytest.importorskip("datasets")
    split = read(tmp_path, "hugging_rows", DATASETS, "of_columns")
    np.testing.assert_array_equal(split.x["x"], X)
    assert split.labels.tolist() == ["no", "yes", "no"]


def test_what_is_wrong_with_a_hugging_face_dataset_is_told(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"row 1 .*'-1', which is none of the classes"):
        read(tmp_path, "hugging_rows", DATASETS, "unlabelled", keep=("text",))
    with pytest.raises(DataError, match=r"DatasetDict; .*one split of it"):
        read(tmp_path, "hugging_rows", DATASETS, "splits")


ALIKE = """
import pandas as pd


class Label:
    names = ["zero", "a class"]


class Table:
    \"\"\"What `datasets.Dataset` has, as far as it is used.\"\"\"

    column_names = ["id", "a", "label"]
    features = {"label": Label(), "a": None}

    def to_pandas(self):
        return pd.DataFrame({"id": ["r0", "r1"], "a": [1.5, 2.5], "label": [1, 0]})


def rows(): return Table()
"""


def test_classes_that_a_table_names_are_those_of_its_numbers(tmp_path):
    split = read(tmp_path, "alike_rows", ALIKE, "rows")
    assert split.labels.tolist() == ["a class", "zero"]
    assert split.y.tolist() == [1, 0]


COMPLEX = """
import pandas as pd

FRAME = pd.DataFrame({"id": ["r0", "r1"], "a": [1.0, 2.0], "label": [0, 1]})


def feature(): return FRAME.assign(a=FRAME.a + 1j)
def target(): return FRAME.assign(label=FRAME.label + 1j)
def weight(): return FRAME.assign(label=FRAME.label, w=FRAME.a + 1j)
"""


@pytest.mark.parametrize(
    ("call", "column"), [("feature", "a"), ("target", "label"), ("weight", "w")]
)
def test_complex_columns_of_a_frame_are_refused(tmp_path, call, column):
    """pandas turns them into float64 without their imaginary parts."""
    options = {"weight": "w"} if call == "weight" else {}
    with pytest.raises(DataError, match=f"column '{column}' holds complex numbers"):
        read(tmp_path, "complex_rows", COMPLEX, call, **options)


def test_a_complex_column_travels_along_as_it_is_written(tmp_path):
    code = COMPLEX + "\n\ndef kept(): return FRAME.assign(z=FRAME.a + 1j)\n"
    split = read(tmp_path, "complex_rows", code, "kept", keep=["z"])
    assert split.kept["z"].tolist() == ["(1+1j)", "(2+1j)"]


NAMED = """
import pandas as pd


class Table:
    column_names = ["id", "a", "label"]

    def __init__(self, names, numbers):
        self.features = {"label": type("Label", (), {"names": names})()}
        self.numbers = numbers

    def to_pandas(self):
        ids = [f"r{k}" for k in range(len(self.numbers))]
        return pd.DataFrame({"id": ids, "a": [float(k) for k in self.numbers],
                             "label": self.numbers})


def train(): return Table(["ant", "bee", "cat"], [0, 1, 2])
def test(): return Table(["bee", "cat"], [0, 1])
def strange(): return Table(["bee", "dog"], [0, 1])
def counted(): return Table(["0", "1", "10", "2"], [3, 2, 1, 0])
"""


def named(folder, train, test, **options):
    (folder / "named_rows.py").write_text(NAMED)
    sys.modules.pop("named_rows", None)
    names = {"train": f"named_rows:{train}", "test": f"named_rows:{test}"}
    return load_splits(DataSettings(**names, id="id", target="label", **options), folder)


def test_classes_are_the_same_ones_by_their_names_in_both_splits(tmp_path):
    """A test split that lacks a class numbers those behind it otherwise."""
    train, test = named(tmp_path, "train", "test")
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1, 2], [1, 2])
    with pytest.raises(DataError, match="'dog', which is none of the classes"):
        named(tmp_path, "train", "strange")


def test_the_settings_put_the_names_of_a_table_in_their_order(tmp_path):
    train, test = named(tmp_path, "train", "test", classes=["cat", "bee", "ant"])
    assert (train.y.tolist(), test.y.tolist()) == ([2, 1, 0], [1, 0])
    assert train.labels.tolist() == ["ant", "bee", "cat"]


def test_names_that_are_digits_are_no_numbers_of_their_table(tmp_path):
    train, _ = named(tmp_path, "counted", "counted")
    assert train.classes == ("0", "1", "10", "2")
    assert (train.y.tolist(), train.labels.tolist()) == ([3, 2, 1, 0], ["2", "10", "1", "0"])
