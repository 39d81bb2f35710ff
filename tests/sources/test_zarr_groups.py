"""Zarr groups: read as xarray reads them, or refused."""

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from influence_dag.datasets.content import source_fingerprint
from influence_dag.datasets.sources import zarr_groups
from influence_dag.datasets.splits import load_split, load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

X = np.array([[0.5, 1.25], [-3.0, 2.0], [7.0, 0.01], [1.0, -1.0]])


def dataset(x=X) -> xr.Dataset:
    ids = np.array(list("abcd"), object)
    return xr.Dataset(
        {"x": (("row", "feature"), x), "y": ("row", [0, 1, 2, 1]), "id": ("row", ids)},
        {"feature": ["u", "v"], "row": [10, 20, 30, 40], "place": ("row", [1.0, 2.0, 3.0, 4.0])},
    )


def read(folder, **options):
    settings = DataSettings(train="t.zarr", test="t.zarr", **options)
    return load_split(settings, "train", folder)


VERSIONS = pytest.mark.parametrize("form", [2, 3])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@VERSIONS
@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -9999},
        {"dtype": "int32", "scale_factor": 0.5, "add_offset": 3.0, "_FillValue": -1},
        {"dtype": "float32", "missing_value": 9.0, "_FillValue": 9.0},
        {"chunks": (3, 1)},
    ],
    ids=["plain", "packed", "offset", "missing", "chunks"],
)
def test_numbers_are_those_that_xarray_reads(tmp_path, form, encoding):
    dataset().to_zarr(tmp_path / "t.zarr", zarr_format=form, encoding={"x": encoding})
    split = read(tmp_path)
    with xr.open_zarr(tmp_path / "t.zarr") as opened:
        np.testing.assert_array_equal(split.x["x"], opened.x.values)
        assert split.y.tolist() == opened.y.values.tolist()
    assert split.ids.tolist() == list("abcd")
    assert list(split.x) == ["x"]  # labels of the axes are no inputs


@VERSIONS
def test_a_masked_number_is_refused_with_its_row(tmp_path, form):
    x = X.copy()
    x[3, 1] = np.nan
    packed = {"x": {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -9999}}
    dataset(x).to_zarr(tmp_path / "t.zarr", zarr_format=form, encoding=packed)
    with pytest.raises(DataError, match=r"t\.zarr: row 3 \(id 'd'\), column 'v': seen .*NaN"):
        read(tmp_path)


def test_times_as_labels_are_dates(tmp_path):
    when = np.array(["2024-01-01", "2024-01-02", "2024-01-04", "2024-01-05"], "datetime64[ns]")
    made = dataset().drop_vars("y").assign(y=("row", when))
    made.to_zarr(tmp_path / "t.zarr")
    assert read(tmp_path).classes == ("2024-01-01", "2024-01-02", "2024-01-04", "2024-01-05")


def test_ids_may_be_the_labels_of_the_rows(tmp_path):
    dataset().drop_vars("id").to_zarr(tmp_path / "t.zarr")
    assert read(tmp_path, id="row").ids.tolist() == ["10", "20", "30", "40"]


@VERSIONS
@pytest.mark.parametrize("array", ["x", "y", "id"])
def test_a_chunk_that_is_not_there_is_told(tmp_path, form, array):
    chunks = {name: {"chunks": (2, 2)[: each.ndim]} for name, each in dataset().data_vars.items()}
    dataset().to_zarr(tmp_path / "t.zarr", zarr_format=form, encoding=chunks)
    read(tmp_path)
    folder = tmp_path / "t.zarr" / array
    lost = next(path for path in sorted(folder.rglob("*")) if path.name in ("0", "0.0"))
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(DataError, match=rf"t\.zarr: {array}: 1 of its 2 chunks are not stored"):
        read(tmp_path)


def test_arrays_without_names_of_axes_are_read_as_they_are(tmp_path):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    for name, values in {"x": X, "y": np.arange(4)}.items():
        group.create_array(name, data=values)
    np.testing.assert_array_equal(read(tmp_path).x["x"], X)
    group["x"].attrs["scale_factor"] = 0.1
    with pytest.raises(DataError, match="x has the attribute 'scale_factor'"):
        read(tmp_path)


@pytest.mark.parametrize("harm", ["chunk", "metadata"])
def test_garbage_is_told_with_the_file(tmp_path, harm):
    dataset().to_zarr(tmp_path / "t.zarr", consolidated=False)
    if harm == "chunk":
        next(p for p in (tmp_path / "t.zarr/x/c").rglob("*") if p.is_file()).write_bytes(b"junk")
    else:
        (tmp_path / "t.zarr/x/zarr.json").write_text('{"a')
    with pytest.raises(DataError, match=r"t\.zarr: not a readable Zarr group"):
        read(tmp_path)


def both(folder, train: xr.Dataset, test: xr.Dataset, **options):
    train.to_zarr(folder / "train.zarr")
    test.assign(id=("row", np.array(list("efgh"), object))).to_zarr(folder / "test.zarr")
    return load_splits(DataSettings(train="train.zarr", test="test.zarr", **options), folder)


def test_labels_along_the_features_are_their_names(tmp_path):
    train, test = both(tmp_path, dataset(), dataset())
    assert train.feature_names == test.feature_names == ("u", "v")


@pytest.mark.parametrize(
    ("feature", "told"),
    [(["v", "u"], "in different orders"), (["u", "w"], "only train.zarr has v, only test.zarr")],
)
def test_features_of_other_labels_are_refused(tmp_path, feature, told):
    """Each column met the other's parameter: only their places counted."""
    with pytest.raises(DataError, match=told):
        both(tmp_path, dataset(), dataset().assign_coords(feature=feature))


def test_features_labelled_in_one_split_alone_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"only train\.zarr has u, v"):
        both(tmp_path, dataset(), dataset().drop_vars("feature"))


def bands(order=(0, 1, 2), along="band") -> xr.Dataset:
    names = np.array(["red", "green", "blue"])[list(order)]
    x = np.arange(24.0).reshape(4, 2, 3)[..., list(order)]
    made = dataset().drop_vars(["x", "feature"])
    return made.assign(x=(("row", "place", along), x)).assign_coords({along: names})


def test_labels_along_an_axis_of_several_are_compared(tmp_path):
    assert both(tmp_path / "same", bands(), bands())[0].feature_names is None
    with pytest.raises(DataError, match=r"labels of x along band: blue, .* and red, green, blue"):
        both(tmp_path, bands(), bands((2, 1, 0)))


def test_files_of_one_split_have_one_order(tmp_path):
    bands().to_zarr(tmp_path / "a.zarr")
    other = bands((1, 0, 2)).assign(id=("row", np.array(list("efgh"), object)))
    other.to_zarr(tmp_path / "b.zarr")
    settings = DataSettings(train=["a.zarr", "b.zarr"], test="a.zarr", id="id")
    with pytest.raises(DataError, match=r"b\.zarr and a\.zarr disagree on the labels of x along"):
        load_split(settings, "train", tmp_path)


@VERSIONS
def test_labels_that_are_lost_are_told(tmp_path, form):
    dataset().to_zarr(tmp_path / "t.zarr", zarr_format=form)
    lost = tmp_path / "t.zarr/feature" / ("0" if form == 2 else "c/0")
    lost.unlink()
    with pytest.raises(DataError, match="feature: 1 of its 1 chunks are not stored"):
        read(tmp_path)


IMAGES = np.arange(36.0).reshape(4, 3, 3)


def write_images(path, dims: tuple[str, ...], x=IMAGES, **options) -> None:
    labels = {"y": ("n", [0, 1, 0, 1]), "id": ("n", [path.name + c for c in "abcd"])}
    xr.Dataset({"x": (dims, x), **labels}).to_zarr(path, **options)


def test_axes_in_another_order_are_refused_whatever_their_lengths(tmp_path):
    """Of square pictures each pixel would have met another's place."""
    write_images(tmp_path / "a.zarr", ("n", "row", "column"))
    write_images(tmp_path / "b.zarr", ("n", "column", "row"), IMAGES.transpose(0, 2, 1))
    write_images(tmp_path / "c.zarr", ("n", "height", "width"))
    told = "disagree on the axes of x: column, row and row, column; write both in one order"
    with pytest.raises(DataError, match=told):
        load_splits(DataSettings(train="a.zarr", test="b.zarr"), tmp_path)
    with pytest.raises(DataError, match=told):
        load_split(DataSettings(train=["a.zarr", "b.zarr"], test="-", id="id"), "train", tmp_path)
    train, test = load_splits(DataSettings(train="a.zarr", test="c.zarr"), tmp_path)
    np.testing.assert_array_equal(train.x["x"], test.x["x"])


def test_rows_along_a_later_axis_are_refused(tmp_path):
    write_images(tmp_path / "t.zarr", ("row", "column", "n"), np.zeros((4, 3, 4)))
    with pytest.raises(DataError, match="x has the axes row, column, n, and n is that of the rows"):
        read(tmp_path)


def test_chunks_may_lie_behind_a_link(tmp_path):
    made = tmp_path / "t.zarr" / "x"
    dataset().to_zarr(tmp_path / "t.zarr", zarr_format=3)
    (made / "c").rename(tmp_path / "another disk")
    (made / "c").symlink_to(tmp_path / "another disk")
    np.testing.assert_array_equal(read(tmp_path).x["x"], X)


def test_an_edit_behind_a_linked_array_is_another_content(tmp_path):
    dataset().to_zarr(tmp_path / "t.zarr")
    (tmp_path / "t.zarr/x").rename(tmp_path / "large")
    (tmp_path / "t.zarr/x").symlink_to(tmp_path / "large")
    data = DataSettings(train="t.zarr", test="t.zarr")
    before = source_fingerprint(data, tmp_path)
    zarr.open_array(tmp_path / "large", mode="r+")[0, 0] = 9.0
    assert source_fingerprint(data, tmp_path) != before
    assert read(tmp_path).x["x"][0, 0] == 9.0


def test_every_chunk_is_looked_for_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_groups, "MOST", 2)
    of_rows = {"encoding": {"x": {"chunks": (1, 3, 3)}}, "zarr_format": 3}
    write_images(tmp_path / "t.zarr", ("n", "row", "column"), IMAGES + 1, **of_rows)
    assert read(tmp_path).x["x"][3, 0, 0] == 28
    (tmp_path / "t.zarr" / "x" / "c" / "3" / "0" / "0").unlink()
    with pytest.raises(DataError, match=r"x: 1 of its 4 chunks are not stored \(c/3/0/0\)"):
        read(tmp_path)
    (tmp_path / "t.zarr" / "x" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(DataError, match="x: at least 2 of its 4 chunks are not stored"):
        read(tmp_path)
