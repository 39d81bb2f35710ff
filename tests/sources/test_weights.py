"""Row weights in every format: read, checked, no feature."""

import sys

import numpy as np
import pandas as pd
import pytest
import zarr
from pydantic import ValidationError

from influence_dag.datasets.splits import load_split
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

X = [[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]]


def frame(weights) -> pd.DataFrame:
    return pd.DataFrame(X, columns=["a", "b"]).assign(id=list("pqr"), y=[0, 1, 2], w=weights)


def csv(folder, weights):
    frame(weights).to_csv(folder / "t.csv", index=False)
    return "t.csv"


def parquet(folder, weights):
    frame(weights).to_parquet(folder / "t.parquet")
    return "t.parquet"


def npz(folder, weights):
    np.savez(folder / "t.npz", x=np.array(X), y=np.arange(3), w=np.array(weights), id=[7, 8, 9])
    return "t.npz"


def zarr_group(folder, weights):
    group = zarr.open_group(folder / "t.zarr", mode="w")
    arrays = {"x": np.array(X), "y": np.arange(1, 4), "w": np.array(weights), "id": [7, 8, 9]}
    for name, values in arrays.items():
        group.create_array(name, data=np.asarray(values), config={"write_empty_chunks": True})
    return "t.zarr"


def of_callable(folder, weights):
    name = f"weighted_{folder.name}"
    (folder / f"{name}.py").write_text(
        "import numpy as np\nnan, inf = np.nan, np.inf\n"
        f"X, W = np.array({X!r}), {list(weights)!r}\n"
        "class Rows:\n    id = ['p', 'q', 'r']\n    def __len__(self): return 3\n"
        "    def __getitem__(self, k): return X[k], k, W[k]\n"
    )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return f"{name}:Rows"


EVERY = pytest.mark.parametrize("source", [csv, parquet, npz, zarr_group, of_callable])


def read(folder, source, weights, which="train", **options):
    name = source(folder, weights)
    settings = DataSettings(train=name, test=name, id="id", **{"weight": "w", **options})
    return load_split(settings, which, folder)


@EVERY
@pytest.mark.parametrize("weights", [[0.5, 2.0, 0.0], [1, 2, 3]])
def test_weights_are_read_and_are_no_feature(tmp_path, source, weights):
    split = read(tmp_path, source, weights)
    assert split.weights.tolist() == weights
    assert split.weights.dtype == np.float64
    np.testing.assert_array_equal(split.x["x"], X)
    assert list(split.x) == ["x"]


@EVERY
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, -0.5, 1.0], "seen -0.5, expected a finite number that is not negative"),
        ([1.0, float("nan"), 1.0], "seen nan, expected a finite"),
        ([1.0, float("inf"), 1.0], "seen inf, expected a finite"),
        ([0.0, 0.0, 0.0], "are all 0; at least one row has to count"),
    ],
    ids=["negative", "nan", "inf", "zero"],
)
def test_weights_that_are_none_are_refused_with_their_row(tmp_path, source, weights, words):
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path, source, weights)
    if "all 0" not in words:
        row = "line 3" if source is csv else "row 1"
        assert row in str(caught.value)


@pytest.mark.parametrize("source", [csv, parquet, npz, zarr_group])
def test_weights_that_are_not_there_are_asked_for(tmp_path, source):
    name = source(tmp_path, [1.0, 2.0, 3.0])
    settings = DataSettings(train=name, test=name, id="id", weight="v", features={})
    with pytest.raises(DataError, match="no weight column 'v'"):
        load_split(settings, "train", tmp_path)


def test_a_weight_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 3 \(id 'q'\), column 'w': seen 'heavy'"):
        read(tmp_path, csv, [1.0, "heavy", 2.0])


def test_weights_of_another_shape_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"weights \(w\) are float64 of shape \(3, 2\)"):
        read(tmp_path, npz, np.ones((3, 2)))


@EVERY
def test_test_rows_have_none(tmp_path, source):
    split = read(tmp_path, source, [0.5, 2.0, 0.0], which="test")
    assert split.weights is None
    np.testing.assert_array_equal(split.x["x"], X)


def test_a_callable_says_what_it_has_to_yield(tmp_path):
    name = of_callable(tmp_path, [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match=r"expected a pair \(x, y\); set data\.weight"):
        load_split(DataSettings(train=name, test=name), "train", tmp_path)


def test_a_weight_is_part_of_the_rows_key(tmp_path):
    before = read(tmp_path, csv, [1.0, 2.0, 3.0]).row_keys()
    after = read(tmp_path, csv, [1.0, 2.5, 3.0]).row_keys()
    assert (before == after).all(1).tolist() == [True, False, True]


def test_a_column_has_one_role():
    with pytest.raises(ValidationError, match="target and weight both name 'y'"):
        DataSettings(train="a.csv", test="b.csv", weight="y")


@pytest.mark.parametrize("save", [csv, parquet])
def test_weights_that_are_no_numbers_are_refused_where_they_are_used(tmp_path, save):
    """Nobody asks for those of testing rows."""
    file = save(tmp_path, ["1", "many", "2"])
    whole = {"train": file, "test": file}
    (tmp_path / "more").mkdir()
    parts = frame([1, 2, 3]).assign(id=list("stu"))
    parts.to_csv(tmp_path / "more/a.csv", index=False)
    parts.assign(id=list("xyz"), w="?").to_csv(tmp_path / "more/b.csv", index=False)
    for names in (whole, {"train": "more/*.csv", "test": "more/*.csv"}):
        data = DataSettings(**names, id="id", target="y", weight="w")
        split = load_split(data, "test", tmp_path)
        assert split.weights is None
        assert split.feature_names == ("a", "b")
        with pytest.raises(DataError, match=r"column 'w': seen '(many|\?)', expected a number"):
            load_split(data, "train", tmp_path)
