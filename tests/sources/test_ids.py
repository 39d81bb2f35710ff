"""Ids: text, bytes in UTF-8 or whole numbers, the same rule in every format."""

import datetime
import sys

import numpy as np
import pandas as pd
import pytest
import zarr

from influence_dag.datasets.splits import load_split
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings


def csv(folder, ids):
    pd.DataFrame({"id": ids, "a": [1.0, 2.0, 3.0], "y": 1}).to_csv(folder / "t.csv", index=False)
    return "t.csv"


def parquet(folder, ids):
    frame = pd.DataFrame({"id": ids, "a": [1.0, 2.0, 3.0], "y": 1})
    frame.to_parquet(folder / "t.parquet")
    return "t.parquet"


def npz(folder, ids):
    np.savez(folder / "t.npz", id=np.asarray(ids), x=np.eye(3), y=np.ones(3, int))
    return "t.npz"


def zarr_group(folder, ids):
    group = zarr.open_group(folder / "t.zarr", mode="w")
    for name, values in {"id": np.asarray(ids), "x": np.ones((3, 2)), "y": np.ones(3)}.items():
        group.create_array(name, data=values)
    return "t.zarr"


def of_callable(folder, ids):
    name = f"made_{folder.name}"
    (folder / f"{name}.py").write_text(
        "import datetime\nimport numpy as np, pandas as pd\nclass Rows:\n"
        f"    id = {ids!r}\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, k): return np.ones(2) * k, 1\n"
    )
    return f"{name}:Rows"


def read(folder, source, ids):
    name = source(folder, ids)
    if ":" in name and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return load_split(DataSettings(train=name, test=name, id="id"), "train", folder).ids.tolist()


EVERY = pytest.mark.parametrize("source", [csv, parquet, npz, zarr_group, of_callable])


@EVERY
@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (["p", "q", "r"], ["p", "q", "r"]),
        ([7, 8, 2**60], ["7", "8", str(2**60)]),
        ([" p", "q ", "r"], ["p", "q", "r"]),
        (["größe", "a$b_{c}", "<b>"], ["größe", "a$b_{c}", "<b>"]),
    ],
    ids=["text", "numbers", "space", "signs"],
)
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_ids_are_text_in_every_format(tmp_path, source, ids, wanted):
    assert read(tmp_path, source, ids) == wanted


@pytest.mark.parametrize("source", [parquet, npz, zarr_group, of_callable])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_bytes_are_their_text(tmp_path, source):
    assert read(tmp_path, source, [b"p", "ü".encode(), b"r"]) == ["p", "ü", "r"]


@pytest.mark.parametrize("source", [parquet, npz, of_callable])
def test_bytes_that_are_no_text_are_refused_with_their_row(tmp_path, source):
    with pytest.raises(DataError, match=r"the id at row 1 is bytes that are not UTF-8"):
        read(tmp_path, source, [b"p", b"\xff", b"r"])


@pytest.mark.parametrize("source", [parquet, npz, zarr_group, of_callable])
@pytest.mark.parametrize("ids", [[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0], [True, False, True]])
def test_decimals_and_truth_values_are_no_ids(tmp_path, source, ids):
    if source is of_callable and np.isnan(ids).any():
        ids = [1.0, 2.5, 3.0]
    with pytest.raises(DataError, match=r"ids are .*; expected one text or whole number|no id at"):
        read(tmp_path, source, ids)


@pytest.mark.parametrize(
    "ids",
    [
        pd.array([1, None, 3], "Int64"),
        pd.array(["p", None, "q"], "string"),
        ["p", None, "q"],
        ["p", "", "q"],
        ["p", "  ", "q"],
        pd.Categorical(["p", None, "q"]),
        pd.array([b"p", None, b"q"], object),
    ],
    ids=["Int64", "string", "None", "empty", "space", "category", "bytes"],
)
def test_a_missing_id_is_told_with_its_row(tmp_path, ids):
    with pytest.raises(DataError, match=r"t\.parquet: no id at row 1; every row needs its own"):
        read(tmp_path, parquet, ids)


def test_a_missing_id_of_a_callable_is_told_with_its_row(tmp_path):
    with pytest.raises(DataError, match="no id at row 1"):
        read(tmp_path, of_callable, ["p", None, "q"])


@pytest.mark.parametrize("source", [parquet, npz])
def test_dates_are_no_ids(tmp_path, source):
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[ns]")
    with pytest.raises(DataError, match=r"ids are .*expected one text or whole number"):
        read(tmp_path, source, days)


def test_dates_as_objects_are_no_ids(tmp_path):
    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    with pytest.raises(DataError, match=r"ids are of type date \(.*at row 0\); expected"):
        read(tmp_path, parquet, days)


def test_ids_that_differ_in_space_or_type_alone_are_one(tmp_path):
    with pytest.raises(DataError, match="'p' at row 0, row 1"):
        read(tmp_path, npz, ["p", "p ", "q"])


@pytest.mark.parametrize("identity", ["a\0b", "\ud800"])
def test_what_no_text_file_holds_is_refused(tmp_path, identity):
    with pytest.raises(DataError, match=r"the id at row 1 is '.*which has a character"):
        read(tmp_path, npz, ["p", identity, "q"])
