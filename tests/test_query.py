"""Stored results as xarray: through `open_study`, and with xarray alone."""

import itertools
import warnings

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import influence_dag as idag
from influence_dag.__main__ import main
from influence_dag.errors import StoreError
from influence_dag.stages.graph import artifacts


@pytest.fixture(scope="module")
def study(finished_project):
    return finished_project.results


@pytest.fixture(scope="module")
def influences(study):
    return study["direct"].influences


def test_a_study_opens_by_its_folder(finished_project):
    study = idag.open_study(str(finished_project.store))
    assert study.methods == ["direct", "cg"]
    assert "direct/perturbation_influences" in study.artifacts
    assert repr(study).startswith("StudyResults('/")


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"no study at .*influence-dag materialize"):
        idag.open_study(tmp_path)


def test_a_study_is_walked_through_by_its_methods(study):
    assert list(study) == ["direct", "cg"] == study._ipython_key_completions_()
    assert "direct" in study
    assert "lissa" not in study


def test_an_unknown_method_is_answered_with_the_known_ones(study):
    with pytest.raises(StoreError, match="no influences of 'lissa'; it has direct, cg"):
        study["lissa"]


def test_influences_are_lazy_and_their_rows_are_known(study):
    dataset = study["cg"]
    assert dataset.influences.dims == ("test", "train")
    assert dataset.influences.chunks == ((10,), (40,))  # of whole stored chunks, up to 128 MiB
    assert dataset.test.values.tolist()[:2] == ["test-00", "test-01"]
    assert dataset.train_label.values.tolist() == [k % 3 for k in range(40)]
    assert {"residual", "niter", "converged"} <= dataset.coords.keys()
    assert (dataset.residual <= 1e-10).all()
    assert not {name for name in dataset.variables if name.endswith(("_valid", "_key"))}


def test_strongest_rows_of_one_test_row(influences):
    row = influences.sel(test="test-03").compute()
    order = np.argsort(row.values)
    helps, harms = row.idag.top_k(4), row.idag.bottom_k(4)
    assert helps.train.values.tolist() == row.train.values[order[::-1][:4]].tolist()
    assert harms.train.values.tolist() == row.train.values[order[:4]].tolist()
    assert helps.train_label.dims == ("train",)
    np.testing.assert_array_equal(helps, np.sort(row.values)[::-1][:4])


def test_strongest_rows_of_all_test_rows(influences):
    helps = influences.idag.top_k(3)
    assert helps.dims == ("test", "rank")
    assert helps.train.dims == ("test", "rank")
    for j in range(10):
        alone = influences.isel(test=j).idag.top_k(3)
        assert helps.train.values[j].tolist() == alone.train.values.tolist()
        np.testing.assert_array_equal(helps[j], alone)


def test_asking_for_more_rows_than_there_are_gives_all(influences):
    assert influences.isel(test=0).idag.top_k(1000).sizes == {"train": 40}


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda array: array.idag.top_k(0), "k is 0; ask for a whole number of rows"),
        (lambda array: array.isel(train=0).idag.top_k(), "ranks along 'train'"),
        (lambda array: array.drop_vars("train_label").idag.by_label(), "have no labels"),
        (lambda array: array.idag.self_influence, "summary: {self_influence: true}"),
    ],
)
def test_questions_without_an_answer(study, ask, words):
    with pytest.raises(StoreError, match=words):
        ask(study["cg"].influences)


def test_means_by_label(influences):
    by_label = influences.idag.by_label()
    assert by_label.dims == ("test", "train_label")
    assert by_label.train_label.values.tolist() == [0, 1, 2]
    expected = [influences.values[:, k::3].mean(axis=1) for k in range(3)]
    np.testing.assert_allclose(by_label, np.stack(expected, axis=1))


def test_self_influence_comes_with_the_influences(study, influences):
    stored = study.open("direct/summary").self_influence
    np.testing.assert_array_equal(influences.idag.self_influence, stored)


def test_holes_are_hidden_here_and_marked_there(project):
    project.write("train", project.rows["train"][:5] + project.rows["train"][7:])
    project.refresh()
    shown = project.results["direct"].influences
    assert shown.sizes == {"test": 10, "train": 38}
    assert shown.notnull().all()
    summary, name = project.results.store.version("direct/summary").open(), "top_train"
    slots, positions = summary[name], project.results.open("direct/summary")[name]
    assert set(np.unique(slots - positions)) == {0, 2}, "one graph, of blocks of other names"
    stored = xr.open_zarr(project.store / "direct/influences/current")
    assert stored.influences.sizes == {"test": 10, "train": 40}
    assert stored.train[~stored.train_valid.values].values.tolist() == ["train-05", "train-06"]
    assert stored.influences.isnull().all("test").values.nonzero()[0].tolist() == [5, 6]


@pytest.fixture(scope="module")
def finished_sweep(finished_project, tmp_path_factory):
    project = finished_project.copy(tmp_path_factory.mktemp("sweep"))
    project.write_settings(damping=[0.05, 0.5], methods={"cg": None})
    project.refresh()
    return project


@pytest.mark.parametrize(
    "removed",
    [[39], [0, 1, 17, 38], [], *(pytest.param([k], marks=pytest.mark.campaign) for k in (0, 3))],
    ids=str,
)
def test_a_summary_names_the_rows_that_its_numbers_are_of(finished_sweep, tmp_path, removed):
    """Whatever rows are gone, of training and of test rows, and also in a sweep."""
    project = finished_sweep.copy(tmp_path)
    for split in ("train", "test"):
        gone = set(removed) if split == "train" else {0, 7}
        project.write(split, [row for k, row in enumerate(project.rows[split]) if k not in gone])
    project.refresh()
    summary = project.results.open("direct/summary").load()
    influences = project.results["direct"].influences.load()
    for damping, test in itertools.product(range(2), influences.test.values):
        said, here = summary.isel(damping=damping), influences.isel(damping=damping)
        here = here.sel(test=test)
        for end, ranked in (("top", here.idag.top_k(10)), ("bottom", here.idag.bottom_k(10))):
            named = said.train.values[said[f"{end}_train"].sel(test=test).values]
            assert named.tolist() == ranked.train.values.tolist()
            values = said[f"{end}_influence"].sel(test=test)
            np.testing.assert_array_equal(values, here.sel(train=named))
    assert "blocks" not in summary, "slots of the store, which nobody can read"


def test_rows_of_artifacts_of_different_age_are_matched_by_id(project):
    """A summary that lacks the newest rows says nothing of them, and nothing wrong.

    Nor of one that has another content since.
    """
    before = project.results["direct"].influences.idag.self_influence
    project.write("train", [*project.rows["train"][1:], ["new", 1.0, 0.0, 0.0, 0]])
    project.edit("train", 5, height=9.0)
    bench = project.bench()
    from influence_dag.stages import dataset, gradients, influences

    project.write_settings(model={"refit": "pinned"})
    for refresh in (dataset.refresh, gradients.refresh):
        refresh(bench)
    influences.refresh(bench, "direct")
    now = project.results["direct"].influences.idag.self_influence
    assert np.isnan(now.sel(train=["new", "train-06"])).all()
    same = [name for name in now.train.values if name not in ("new", "train-06")]
    assert len(same) == 38
    np.testing.assert_array_equal(now.sel(train=same), before.sel(train=same))


@pytest.mark.parametrize("what", ["theta", "damping", "sweep"])
def test_what_is_of_another_system_does_not_stand_beside_the_influences(project, what):
    """A run that ended between the influences and their summary."""
    if what == "theta":
        project.edit("train", 1, height=3.0)
    else:
        project.write_settings(damping=0.5 if what == "damping" else [0.05, 0.5])
    bench = project.bench()
    for node in artifacts(bench.study):
        node.refresh(bench)
        if node.name == "direct/influences":
            break
    said = "left out self_influence: direct/summary and direct/influences are not of the same θ"
    with pytest.warns(RuntimeWarning, match=said):
        found = project.results["direct"]
    assert "self_influence" not in found.coords
    assert "residual" in found.coords
    project.refresh()
    assert project.results["direct"].self_influence.notnull().all()


def test_what_is_older_than_the_rows_or_theta_beside_it_is_said(project):
    def told(name):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            project.results.open(name)
        return " ".join(str(each.message) for each in caught)

    every = ("cg/influences", "cg/summary", "direct/influences", "direct/perturbation_influences")
    assert not any(map(told, every))
    project.write_settings(methods={"cg": None}, model={"refit": "pinned"})
    project.edit("test", 1, height=3.0)
    project.refresh()
    for name in every:
        assert ("before the test rows that are stored" in told(name)) is name.startswith("cg/")
    with pytest.warns(RuntimeWarning, match="cg/influences was computed before the test rows"):
        project.results["cg"]
    project.write_settings(model={"refit": "on_change"})
    project.edit("train", 1, height=3.0)
    project.refresh()
    assert "before the stored model and the test rows that are stored and the train" in told(
        every[0]
    )
    assert not any(map(told, every[2:]))


def test_versions_can_be_listed_and_opened(project):
    project.edit("test", 0, height=0.0)
    first = project.results.open("direct/influences").load()
    project.refresh()
    study = project.results
    assert [entry["version"] for entry in study.version_table("direct/influences")] == [1, 2]
    assert study.version_table("direct/influences")[0]["train_rows"] == 40
    older, newer = (study.open("direct/influences", version=k).influences for k in (1, 2))
    assert not (newer - older)[1:].values.any()
    assert (newer - older)[0].values.all(), "one graph, of blocks that have names of their own"
    assert study["direct"].influences.data.name == newer.data.name, "what is the same is read once"
    xr.testing.assert_identical(study.open("direct/influences", version=1).load(), first)
    with pytest.raises(StoreError, match=r"no version 7; kept are \[1, 2\]"):
        study.open("direct/influences", version=7)


def test_versions_are_listed_beside_a_damaged_one(project):
    """An older version is never computed again, and its damage is no reason to hide the others."""
    project.edit("test", 0, height=0.0)
    project.refresh()
    versions = project.store / "direct/influences/versions"
    (versions / "000001/manifest.json").unlink()
    damaged, current = project.results.version_table("direct/influences")
    assert "manifest.json is missing" in damaged["damage"]
    assert (damaged["version"], current["version"], current["train_rows"]) == (1, 2, 40)
    done = CliRunner().invoke(main, ["versions", str(project.store), "direct/influences"])
    assert done.exit_code == 0, done.output
    assert done.output.count("damaged") == 1


# What xarray, pandas and matplotlib are asked for


SAVED = {
    "zarr": lambda dataset, path: dataset.to_zarr(path),
    "zarr 2": lambda dataset, path: dataset.to_zarr(path, zarr_format=2),
    "netcdf": lambda dataset, path: dataset.to_netcdf(path, engine="scipy"),
}
OPENED = {
    "zarr": xr.open_zarr,
    "zarr 2": xr.open_zarr,
    "netcdf": lambda path: xr.open_dataset(path, engine="scipy"),
}


@pytest.mark.parametrize("form", SAVED)
@pytest.mark.parametrize(
    "part",
    [
        lambda dataset: dataset,
        lambda dataset: dataset.isel(train=slice(3, None)),
        lambda dataset: dataset.isel(train=slice(None, None, 7), test=[4, 1]),
        lambda dataset: dataset.sel(train=["train-07", "train-03"]),
        lambda dataset: dataset.isel(test=0),
    ],
    ids=["all", "slice", "steps", "names", "one row"],
)
def test_results_are_saved_in_other_formats(study, tmp_path, form, part):
    wanted = part(study["direct"])
    SAVED[form](wanted, tmp_path / "saved")
    read = OPENED[form](tmp_path / "saved")
    np.testing.assert_array_equal(read.influences.values, wanted.influences.values)
    assert read.train.values.tolist() == wanted.train.values.tolist()
    assert read.train_label.values.tolist() == wanted.train_label.values.tolist()


@pytest.mark.parametrize("form", SAVED)
def test_every_artifact_is_saved_in_other_formats(study, tmp_path, form):
    alike = ("cg/influences", "cg/summary")  # as those of `direct`
    for position, artifact in enumerate(each for each in study.artifacts if each not in alike):
        wanted, path = study.open(artifact), tmp_path / str(position)
        SAVED[form](wanted, path)
        read = OPENED[form](path)
        for name, array in wanted.data_vars.items():
            np.testing.assert_array_equal(read[name].values, array.values)


def test_results_with_holes_are_saved_too(project, tmp_path):
    project.write("train", project.rows["train"][:5] + project.rows["train"][7:])
    project.refresh()
    shown = project.results["direct"]
    shown.to_zarr(tmp_path / "saved")
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "saved").influences.values, shown.influences.values
    )


def test_questions_of_xarray_are_answered_by_name(influences):
    values, names = influences.values, influences.train.values
    assert influences.idxmax("train").values.tolist() == names[values.argmax(1)].tolist()
    pairs = influences.coarsen(train=2, coord_func={"train": "min"}).mean()  # names have no mean
    np.testing.assert_allclose(pairs.values, values.reshape(10, 20, 2).mean(2))
    assert pairs.train.values.tolist() == names[::2].tolist()
    frame = influences.to_pandas()
    one = influences.sel(test="test-01", train="train-03").load().item()
    assert frame.loc["test-01", "train-03"] == one
    pairs = influences.stack(pair=("test", "train"))
    assert pairs.sizes["pair"] == influences.size
    by = influences.groupby("train_label").mean()
    np.testing.assert_allclose(by, influences.idag.by_label())
    chosen = influences.where(influences.train_label == 2, drop=True)
    assert set(chosen.train_label.values.tolist()) == {2}
    assert influences.sortby("train_label").train_label.values.tolist() == sorted(
        influences.train_label.values.tolist()
    )


def test_a_table_of_artifacts_of_several_ages_holds_the_ids_and_digits_of_each(
    finished_project, tmp_path
):
    """Of a method that the settings no longer name, with ids of before; it ended in a traceback."""
    parquet = pytest.importorskip("pyarrow.parquet")
    project = finished_project.copy(tmp_path)
    project.write_settings(methods={"cg": None}, compute={"dtype": "float32"}, perturbation=None)
    for split, rows in project.rows.items():
        project.write(split, [[number, *row[1:]] for number, row in enumerate(rows)])
    project.refresh()
    results = project.results
    written = results.export(tmp_path / "one.parquet", "cg/influences")
    assert written["artifacts"] == ["cg/influences"], "one may be named by itself"
    results.export(tmp_path / "pairs.parquet")
    table = parquet.read_table(tmp_path / "pairs.parquet").to_pandas()
    for method, first in (("direct", "0"), ("cg", "train-00")):
        found = table[table.method == method]
        np.testing.assert_array_equal(found.influence, results[method].influences.values.ravel())
        assert found.train.iloc[0] == first
