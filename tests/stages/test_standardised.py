"""Columns of any size: told before the fit, standardised where the study asks for it."""

import shutil

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_project import Project
from weighted import Weighted

from influence_dag.datasets.sources import on_demand
from influence_dag.datasets.sources.on_demand import moments
from influence_dag.datasets.splits import load_split
from influence_dag.datasets.standardising import Units, unscaled
from influence_dag.errors import DataError, StoreError, StudyError
from influence_dag.stages import dataset, features
from influence_dag.stages.status import status
from influence_dag.study.data import FeatureSettings

SIZES = {"height": 1e-3, "width": 1.0, "depth": 4e4}


def stretched(project, sizes=SIZES):
    """The rows with columns of very different sizes, and away from zero."""
    for split in ("train", "test"):
        rows = [
            [row[0], *((row[k] + 3) * size for k, size in enumerate(sizes.values(), 1)), row[4]]
            for row in project.rows[split]
        ]
        project.write(split, rows)


def arrays(project, name="dataset"):
    return project.results.open(name)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path, methods={"cg": None})
    stretched(project)
    return project


def test_columns_of_very_different_sizes_are_named_with_the_cure_before_the_fit(project):
    said = []
    project.refresh(said.append)
    warned = next(k for k, line in enumerate(said) if line.startswith("warning: columns"))
    fitted = next(k for k, line in enumerate(said) if line.startswith("lbfgs:"))
    assert warned < fitted
    assert "'depth' (about" in said[warned]
    assert "'height' (about" in said[warned]
    assert "standardise: true" in said[warned]
    assert "float64" in said[warned]


def test_columns_of_like_sizes_are_not_mentioned(tmp_path):
    said = []
    Project(tmp_path, methods={"cg": None}).refresh(said.append)
    assert not [line for line in said if line.startswith("warning: columns")]


def standardised(project):
    features = {"features": {"standardise": True}}
    project.write_settings(data=features)
    project.refresh()
    return arrays(project)


def test_the_model_sees_columns_of_the_order_of_one_and_units_are_stored(project):
    stored = standardised(project)
    for split in ("train", "test"):
        seen = np.asarray(stored[f"{split}_x"])[: len(project.rows[split])]
        raw = np.array([row[1:4] for row in project.rows[split]])
        mean, scale = stored["feature_mean"].values, stored["feature_scale"].values
        np.testing.assert_allclose(seen * scale + mean, raw, rtol=1e-12)
    assert (np.abs(seen.mean(0)) < 1).all()
    train = np.asarray(stored["train_x"])[: len(project.rows["train"])]
    assert (np.abs(train.mean(0)) <= 1 / 8).all()
    assert ((train.std(0) >= 0.7) & (train.std(0) <= 1.42)).all()


def test_perturbations_are_had_per_original_unit(project):
    """ε of a column's own unit moves the model's input by ε / scale."""
    stored = standardised(project)
    found = project.results.perturbation("direct")
    per_unit = found.idag.per_unit()
    scale = stored["feature_scale"].values
    np.testing.assert_allclose(per_unit.values * scale, found.values)
    assert per_unit.attrs["per"] == "unit of the file's column"
    assert found.dims == per_unit.dims
    with pytest.raises(StoreError, match="per unit of the file's column already"):
        per_unit.idag.per_unit()


def test_per_unit_of_other_arrays_is_refused(tmp_path):
    project = Project(tmp_path, methods={"cg": None})
    project.refresh()
    with pytest.raises(StoreError, match="standardise: true"):
        project.results.perturbation("direct").idag.per_unit()


def test_an_edit_leaves_the_units_and_costs_what_it_costs_without(project):
    before = standardised(project)
    project.edit("train", 5, width=3.3)
    updates = project.refresh()
    after = arrays(project)
    for name in ("feature_mean", "feature_scale"):
        np.testing.assert_array_equal(before[name], after[name])
    assert updates["dataset"].blocks_reused >= 5  # of 5 train and 3 test chunks, two arrays each


@pytest.mark.parametrize("what", ["rows", "scale", "setting"])
def test_a_pinned_theta_refuses_columns_in_other_units(project, what):
    standardised(project)
    project.write_settings(model={"refit": "pinned"})
    assert all(update.is_current for update in project.refresh().values())
    if what == "rows":
        project.edit("train", 5, depth=4e7)
    else:
        features = {"scale": 2.0} if what == "scale" else {"standardise": False}
        project.write_settings(data={"features": features})
    with pytest.raises(StudyError, match=r"made from columns in other units .*refit: on_change"):
        project.refresh()
    project.write_settings(model={"refit": "on_change"})
    project.refresh()
    project.write_settings(model={"refit": "pinned"})
    assert all(update.is_current for update in project.refresh().values())


def test_a_checkpoint_refuses_units_that_an_edit_has_moved(project):
    standardised(project)
    shutil.copy(project.store / "model/current/model.safetensors", project.root / "net.safetensors")
    model = {"fit": None, "checkpoint": "net.safetensors"}
    project.write_settings(model=model, damping=0.05)
    project.refresh()
    depth = project.rows["train"][5][3]
    project.edit("train", 5, depth=4e7)
    for ask in (project.refresh, lambda: status(project.folder)):
        with pytest.raises(StudyError, match="standardise the columns in the files, so that"):
            ask()
    project.edit("train", 5, depth=depth)
    project.refresh()
    project.write_settings(data={"features": {"standardise": False}}, damping=5.0)
    project.refresh()  # what it was trained on is for its maker to say


def test_the_same_rows_have_the_same_units_whatever_they_were_before(project, tmp_path_factory):
    standardised(project)
    project.edit("train", 5, depth=4e7)  # so large that the column's scale changes
    project.refresh()
    changed = arrays(project)["feature_scale"].values
    fresh = project.copy(tmp_path_factory.mktemp("fresh"))
    fresh.remove_store()
    fresh.refresh()
    np.testing.assert_array_equal(arrays(fresh)["feature_scale"], changed)
    np.testing.assert_allclose(
        arrays(fresh, "direct/influences")["influences"],
        arrays(project, "direct/influences")["influences"],
        rtol=1e-3,
        atol=1e-6,
    )


def test_constant_columns_keep_their_unit_and_indices_are_refused():
    units = Units.of(np.array([[7.25, 1.0], [7.25, 3.0]]), "rows.csv")
    np.testing.assert_array_equal(units.apply(np.array([[7.25, 1.0]]))[0, 0], 0.0)
    assert units.scale[0] == 1.0
    with pytest.raises(DataError, match=r"rows\.csv.*may be indices"):
        Units.of(np.array([[3, 4]]), "rows.csv")


def test_standardise_is_yes_or_no():
    with pytest.raises(ValidationError):
        FeatureSettings(standardise="perhaps")


def test_a_row_of_weight_2_counts_twice_in_the_units_and_one_of_0_not(monkeypatch):
    monkeypatch.setattr(on_demand, "BLOCK_BYTES", 64)  # blocks of four rows
    rng = np.random.default_rng(0)
    values = rng.normal(size=(11, 2)) * [3.0, 1e-3] + [100.0, 0.0]
    weights = np.array([0, 0, 0, 0, 1, 2, 3, 0, 5, 1, 4])
    values[weights == 0] *= 1e6
    repeated = np.repeat(values, weights, axis=0)
    for found, wanted in zip(moments(values, weights), moments(repeated), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    one, other = Units.of(values, "rows", weights), Units.of(repeated, "rows")
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_units_of_a_weighted_study_are_by_its_weights(tmp_path):
    project = Weighted(tmp_path, methods={"cg": None}, data={"weight": "importance"})
    stretched(project)
    weights = [0.0] * 39 + [2.0]
    weights[:2] = [1.0, 3.0]
    project.write("train", weights={"train": weights}["train"])
    project.write_settings(data={"features": {"standardise": True}})
    dataset.refresh(project.bench())
    counted = np.array([project.rows["train"][k][1:4] for k in (0, 1, 39)])
    wanted = Units.of(np.repeat(counted, [1, 3, 2], axis=0), "rows")
    stored = arrays(project)
    np.testing.assert_array_equal(stored.feature_mean, wanted.mean)
    np.testing.assert_array_equal(stored.feature_scale, wanted.scale)


@pytest.mark.parametrize("weight", ["importance", None])
def test_sizes_of_columns_are_by_the_rows_weights(tmp_path, weight):
    """A row of weight 0 adds nothing to the curvature, whatever is in it."""
    data = {"weight": weight, "features": {"columns": ["height", "width", "depth"]}}
    project = Weighted(tmp_path, methods={"cg": None}, data=data)
    for row, counts in zip(project.rows["train"], project.weights["train"], strict=True):
        row[1] *= 1.0 if counts else 1e7
    project.write("train")
    bench = project.bench()
    dataset.refresh(bench)
    told = (
        features.unscaled_columns(bench),
        unscaled(load_split(bench.settings.data, "train", tmp_path)),
    )
    assert [bool(each) for each in told] == [weight is None] * 2
