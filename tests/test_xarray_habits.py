"""What people do with xarray and pandas, on opened results and on the plain store."""

import html
import json
import pickle
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import influence_dag as idag
from influence_dag.errors import StoreError
from influence_dag.query.result_arrays import of_results
from influence_dag.query.xarray_backend import StudyBackend

ARTIFACT = "direct/influences"
DESIGN = (Path(__file__).parents[1] / "docs" / "design.md").read_text()


def plain(project, artifact: str = ARTIFACT, **options) -> xr.Dataset:
    return xr.open_zarr((project.store / artifact / "current").resolve(), **options)


def by_xarray_alone(project) -> xr.Dataset:
    """The lines that docs/design.md has for the plain store, without this package."""
    (lines,) = re.findall(r"^```python\n(ds = xr\.open_zarr.*?)^```", DESIGN, re.M | re.S)
    names = {"xr": xr, "path": (project.store / ARTIFACT / "current").resolve()}
    exec(lines, names)
    return names["ds"]


OPENED = {
    "open_study": lambda project: project.results["direct"],
    "engine": lambda project: xr.open_dataset(project.store / ARTIFACT, engine=StudyBackend),
    "plain xarray": by_xarray_alone,
}


@pytest.fixture(scope="module", params=OPENED)
def dataset(request, finished_project):
    return OPENED[request.param](finished_project)


@pytest.fixture
def influences(dataset):
    return dataset.influences


@pytest.fixture
def values(finished_project):
    return finished_project.results["direct"].influences.values


NAMES = [f"train-{k:02d}" for k in range(40)]


def test_labels_are_text_as_numpy_has_it(dataset):
    assert dataset.train.astype(str).values.tolist() == NAMES
    assert np.asarray(dataset.train, dtype=str).tolist() == NAMES
    assert dataset.train.str.endswith("7").values.sum() == 4


@pytest.mark.parametrize("kind", ["map", "line", "histogram"])
def test_plots(influences, kind):
    figure, axes = plt.subplots()
    if kind == "map":
        drawn = influences.plot(ax=axes)
        assert drawn.get_array().size == 400
    elif kind == "line":
        (line,) = influences.isel(test=0).plot(ax=axes)
        assert len(line.get_ydata()) == 40
    else:
        counts, _, _ = influences.plot.hist(ax=axes)
        assert counts.sum() == 400
    plt.close(figure)


def test_the_strongest_row_by_name(influences, values):
    assert influences.idxmax("train").values.tolist() == np.array(NAMES)[values.argmax(1)].tolist()


def test_means_over_windows(influences, values):
    found = influences.coarsen(train=4, coord_func={"train": "min"}).mean()
    np.testing.assert_allclose(found, values.reshape(10, 10, 4).mean(-1), rtol=1e-12)
    assert found.train.values.tolist() == NAMES[::4]


def test_tables_of_pandas(influences, values):
    frame = influences.to_pandas()
    assert frame.loc["test-01", "train-03"] == values[1, 3]
    long = influences.to_dataframe()
    assert long.loc[("test-01", "train-03"), "influences"] == values[1, 3]
    assert long.loc[("test-01", "train-03"), "train_label"] == 0


def test_groups(influences, values):
    by = influences.groupby("train_label").mean()
    expected = np.stack([values[:, k::3].mean(1) for k in range(3)], 1)
    np.testing.assert_allclose(by, expected)
    np.testing.assert_allclose(influences.idag.by_label(), expected)


@pytest.mark.parametrize(
    ("version", "part"), [(2, {"train": slice(3, 20)}), (3, {"train": [7, 3], "test": 1})]
)
def test_slices_are_saved_as_zarr(dataset, tmp_path, version, part):
    wanted = dataset.isel(part)
    wanted.to_zarr(tmp_path / "saved", zarr_format=version)
    read = xr.open_zarr(tmp_path / "saved")
    np.testing.assert_array_equal(read.influences, wanted.influences)
    assert read.train.values.tolist() == wanted.train.values.tolist()


def test_pickles(dataset):
    again = pickle.loads(pickle.dumps(dataset))
    xr.testing.assert_identical(again.load(), dataset.compute())


def test_opened_studies_are_sent_to_other_processes(finished_project):
    study = pickle.loads(pickle.dumps(finished_project.results))
    expected = finished_project.results["direct"].influences
    np.testing.assert_array_equal(study["direct"].influences, expected)


def test_maps_of_features_are_drawn_and_listed_by_name(finished_project):
    pair = finished_project.results.perturbation("direct").sel(test="test-01", train="train-03")
    figure, axes = plt.subplots()
    (line,) = pair.plot(ax=axes)
    np.testing.assert_array_equal(line.get_ydata(), pair)
    plt.close(figure)
    assert pair.to_series().index.tolist() == ["height", "width", "depth"]
    assert str(abs(pair).idxmax().values) in ("height", "width", "depth")


def test_reprs_say_what_it_is(dataset):
    for shown in (repr(dataset), html.unescape(dataset._repr_html_())):
        assert "influences" in shown
        assert "test: 10" in shown
        assert "train: 40" in shown
    assert "positive" in repr(dataset.influences), "sign and units stand beside the numbers"


@pytest.mark.parametrize(
    ("engine", "module"), [("scipy", "scipy"), ("h5netcdf", "h5netcdf"), ("netcdf4", "netCDF4")]
)
@pytest.mark.parametrize("opened", ["open_study", "engine"])
def test_netcdf(finished_project, tmp_path, opened, engine, module):
    pytest.importorskip(module)
    dataset = OPENED[opened](finished_project)
    dataset.isel(train=slice(3, 20)).to_netcdf(tmp_path / "saved.nc", engine=engine)
    read = xr.open_dataset(tmp_path / "saved.nc", engine=engine)
    np.testing.assert_array_equal(read.influences, dataset.influences[:, 3:20])
    assert read.train.values.tolist() == NAMES[3:20]


def test_groups_of_attributes_are_read_back(finished_project):
    dataset = finished_project.results["direct"]
    settings = json.loads(dataset.attrs["method_settings"])
    assert settings["curvature"] == "hessian"
    assert settings == plain(finished_project).attrs["method_settings"]


# What the plain store does without any of that


def test_the_plain_store_as_it_is(finished_project, values):
    ds = plain(finished_project)
    assert ds.influences.sel(test="test-01", train="train-03").values == values[1, 3]
    assert ds.influences.sel(train=["train-04", "train-03"]).train_label.values.tolist() == [1, 0]
    np.testing.assert_array_equal(ds.influences.to_pandas(), values)
    expected = np.stack([values[:, k::3].mean(1) for k in range(3)], 1)
    np.testing.assert_allclose(ds.influences.idag.by_label(), expected)
    best = ds.influences.isel(test=0).idag.top_k(1)
    assert best.train.item() == NAMES[values[0].argmax()]
    xr.testing.assert_identical(pickle.loads(pickle.dumps(ds)).load(), ds.load())


# Ids that are whole numbers


@pytest.fixture(scope="module")
def numbered(finished_project, tmp_path_factory):
    """The same rows under ids 0, 10, 20, …"""
    project = finished_project.copy(tmp_path_factory.mktemp("numbered"))
    for split in ("train", "test"):
        project.write(split, [[10 * k, *row[1:]] for k, row in enumerate(project.rows[split])])
    project.write_settings(methods={"cg": None}, perturbation=None)
    project.refresh()
    return project


@pytest.mark.parametrize("opened", OPENED)
def test_whole_numbers_are_whole_numbers(numbered, opened):
    influences = OPENED[opened](numbered).influences
    found = influences.sel(train=170, test=[30, 0])
    np.testing.assert_array_equal(found, numbered.results["direct"].influences[[3, 0], 17])
    assert influences.idxmax("train").isin(range(0, 400, 10)).all()
    assert plain(numbered).train.dtype == np.int64


def test_ids_with_another_among_them_are_text_until_it_is_gone(numbered, tmp_path):
    project = numbered.copy(tmp_path)
    before = project.results.store.version(ARTIFACT).number
    project.write("train", [["010", *project.rows["train"][0][1:]], *project.rows["train"]])
    project.refresh()
    assert project.results["direct"].train.values.tolist()[-1] == "010"
    changes = project.results.diff(ARTIFACT, before)
    assert changes.added["train"] == ["010"]
    assert changes.removed["train"] == []
    project.write("train", project.rows["train"][1:])
    project.refresh()
    assert project.results["direct"].train.dtype == np.int64


# A study as a tree


def test_a_study_is_a_tree_of_its_artifacts(finished_project):
    tree = xr.open_datatree(finished_project.store, engine=StudyBackend)
    assert tree.name == "tiny"
    found = {node.path[1:] for node in tree.leaves}
    assert found == set(finished_project.results.artifacts)
    for name in ("direct/influences", "cg/influence_factors", "dataset"):
        found = of_results(tree[name].to_dataset(inherit=False))
        xr.testing.assert_identical(found.load(), finished_project.results.open(name).load())


def test_a_tree_hides_holes_and_is_saved(project, tmp_path):
    project.write_settings(methods={"cg": None}, perturbation=None)
    project.write("train", project.rows["train"][:5] + project.rows["train"][7:])
    project.refresh()
    tree = xr.open_datatree(project.store, engine=StudyBackend, chunks={})
    assert tree[ARTIFACT].influences.chunks is not None
    assert tree[ARTIFACT].sizes["train"] == 38
    tree[ARTIFACT].to_zarr(tmp_path / "saved")
    read = xr.open_datatree(tmp_path / "saved", engine="zarr")
    np.testing.assert_array_equal(read.influences, tree[ARTIFACT].influences)


def test_xarray_knows_studies_by_their_look(finished_project, tmp_path):
    knows = StudyBackend().guess_can_open
    assert knows(finished_project.store)
    assert knows(str(finished_project.store))
    others = (tmp_path, finished_project.root, finished_project.store / ARTIFACT / "current")
    assert not any(knows(each) for each in (*others, "s3://bucket/study", b"bytes"))


def test_artifacts_and_versions_are_opened_by_their_folders(finished_project, tmp_path):
    folder = finished_project.store / "cg" / "influences"
    expected = finished_project.results.open("cg/influences").load()
    for place in (folder, folder / "current", folder / "versions" / "000001"):
        opened = xr.open_dataset(place, engine=StudyBackend, drop_variables=["train_label", "-"])
        xr.testing.assert_identical(opened.load(), expected.drop_vars("train_label"))
    with pytest.raises(StoreError, match="is no artifact of a study"):
        xr.open_dataset(tmp_path, engine=StudyBackend)
    with pytest.raises(StoreError, match="no version 7"):
        xr.open_dataset(Path(folder / "versions" / "000007"), engine=StudyBackend)


def test_the_results_of_a_study_show_what_is_stored(finished_project):
    study = idag.open_study(finished_project.store)
    for shown in (repr(study), study._repr_html_()):
        assert "direct/influences" in shown
        assert "influences: test 10 × train 40, float64" in shown
        assert "cg" in shown
