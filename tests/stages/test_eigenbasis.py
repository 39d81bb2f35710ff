"""Studies of Kronecker factors answer from pairs what the stored dense factors would answer."""

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.components import metadata
from influence_dag.stages import checks, dataset, reading, sampling, summary
from influence_dag.stages.blocks import Tile
from influence_dag.stages.eigenbasis import GradientsOfTests
from influence_dag.stages.graph import artifacts
from influence_dag.stages.influences import ProductsOfPairs
from influence_dag.stages.solving import SolvesOfRows

TWO_FACTORS = "512B"  # of the 10, 248 bytes each


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A sweep of two λ, with a hole on both axes."""
    project = Project(
        tmp_path_factory.mktemp("eigenbasis"),
        methods={"direct": None, "cg": None, "ekfac": {}},
        perturbation=None,
        damping=[0.05, 0.5],
        compute={"block_bytes": TWO_FACTORS},
    )
    bench = project.bench()
    dataset.refresh(bench)
    project.write("test", project.rows["test"][:2] + project.rows["test"][3:])
    project.write("train", project.rows["train"][1:])
    project.refresh()
    return project


@pytest.fixture
def project(original, tmp_path):
    return original.copy(tmp_path)


def products(bench):
    """Of the stored factors and gradients."""
    factors = bench.require("ekfac/influence_factors").read("influence_factors")
    G = reading.load_gradients(bench, slice(0, len(bench.axis("gradients", "train")))).dense()
    return factors @ G.cpu().numpy().T


def influences(bench):
    """All of them, by the kernel that the stage hands out."""
    shape = bench.require("ekfac/influences").variables["influences"].shape
    tile = Tile((0,) * len(shape), shape, ())
    return ProductsOfPairs("ekfac", rotates=True).at(bench)(tile)["influences"].cpu()


def assert_equal(seen, wanted):
    np.testing.assert_allclose(seen, wanted, rtol=1e-9, atol=1e-12 * np.nanmax(np.abs(wanted)))


def test_influences_need_no_dense_factors_where_these_are_larger_than_a_block(
    original, monkeypatch
):
    bench = original.bench()
    wanted = products(bench)
    monkeypatch.setattr(reading, "load_factors", None)
    found = influences(bench)
    assert_equal(found, wanted)
    assert_equal(found, bench.require("ekfac/influences").read("influences"))
    assert found[:, 2].isnan().all(), "the hole of a test row"
    assert found[:, :, 0].isnan().all(), "and of a training row"


def test_few_factors_are_read_as_they_are_stored(project, monkeypatch):
    project.write_settings(compute={"block_bytes": "64MiB"})
    monkeypatch.setattr(GradientsOfTests, "of", None)
    bench = project.bench()
    assert_equal(influences(bench), products(bench))


def test_training_rows_are_cut_by_what_is_kept_of_them(original, monkeypatch):
    """Factors are read for four rows at a time, of 14 numbers, not for two of 31."""
    bench, asked, load = original.bench(), [], reading.load_factors
    monkeypatch.setattr(reading, "load_factors", lambda *what: asked.append(what) or load(*what))
    shape = bench.require("ekfac/influences").variables["influences"].shape
    assert shape == (2, 10, 40)
    tile = Tile((0, 0, 0), shape, ())
    found = ProductsOfPairs("ekfac").at(bench)(tile)["influences"].cpu()
    assert len(asked) == 2 * (10 // 2) * (40 // 4)
    assert_equal(found, products(bench))


@pytest.mark.parametrize("what", ["another test row", "another curvature", "another loss"])
def test_factors_of_another_age_are_not_made_anew(project, what):
    """Influences are products of what is stored, also where that is no longer what would be."""
    assert GradientsOfTests.of(project.bench(), "ekfac") is not None
    refreshed = "dataset"
    if what == "another test row":
        project.edit("test", 0, height=3.5)
    elif what == "another curvature":
        project.write_settings(methods={"ekfac": {"fisher": "empirical"}})
        refreshed = "ekfac/curvature"
    else:
        project.write_settings(model={"measurement": "tiny_model:build"})
    bench = project.bench()
    next(node for node in artifacts(bench.study) if node.name == refreshed).refresh(bench)
    bench = project.bench()
    assert GradientsOfTests.of(bench, "ekfac") is None
    assert_equal(influences(bench), products(bench))


def test_self_influences_are_those_of_dense_solves(original):
    bench = original.bench()
    of_rows = summary._Summary(bench, "ekfac").solves
    rows = of_rows.rows.slots
    G = reading.load_gradients(bench, slice(0, rows[-1] + 1)).dense()[rows]
    stored = bench.require("ekfac/summary")
    for k, damping in enumerate((0.05, 0.5)):
        x = of_rows.factorization.solve(G, damping=damping).x
        assert_equal(stored.read("self_influence")[k, rows], (x * G).sum(1).cpu().numpy())
        assert_equal(stored.read("parameter_influence_norm")[k, rows], x.norm(dim=1).cpu().numpy())


# Residuals -------------------------------------------------------------------------------------


def test_residuals_are_of_a_stated_sample_where_each_takes_long(project, monkeypatch):
    whole = project.bench().require("ekfac/influence_factors").read("residual")
    monkeypatch.setattr(sampling, "FREE", 39 * 31 / 4)  # a quarter of n times p
    bench = project.bench()
    axis = bench.axis("dataset", "test")
    tile = Tile((0, 0), (2, len(axis)), ())
    found = SolvesOfRows("ekfac", ("influence_factors", "residual")).at(bench)(tile)["residual"]
    chosen = axis.valid & (axis.keys % 4 == 0)
    assert 0 < chosen.sum() < axis.count
    np.testing.assert_allclose(found[:, chosen], whole[:, chosen], rtol=1e-6)
    assert np.isnan(found[:, ~chosen]).all()


def test_all_residuals_are_computed_on_request(project, monkeypatch):
    monkeypatch.setattr(sampling, "FREE", 1)
    project.write_settings(methods={"ekfac": {"residuals": "all"}})
    assert sampling.of_method(project.bench(), "ekfac") == sampling.Sample()
    project.write_settings(methods={"ekfac": None, "direct": {}})
    assert sampling.of_method(project.bench(), "direct") == sampling.Sample()


@pytest.mark.parametrize("free", [39 * 31 / 4, 1e-9], ids=["some rows", "no row"])
def test_a_sample_of_residuals_is_complete_and_drawn(project, monkeypatch, free):
    monkeypatch.setattr(sampling, "FREE", free)
    project.write_settings(damping=[0.1, 0.2])
    bench = project.bench()
    node = next(n for n in artifacts(bench.study) if n.name == "ekfac/influence_factors")
    node.refresh(bench)
    version = bench.published(node.name)
    every = sampling.of_method(bench, "ekfac").every
    assert f"multiple of {every};" in version.array("residual").attrs["sample"]
    assert checks.complete(bench, node.name, "test").passed
    of_rows = sampling.values_of_rows(version, "residual")
    keys = version.coordinate("test_key")[version.coordinate("test_valid")]
    assert len(of_rows) == 2 * (keys % np.uint64(every) == 0).sum()
    assert bool(len(of_rows)) == (every == 4)
    assert ("worst_residual" in metadata._solves(version)) == bool(len(of_rows))
    assert node.picture is not None
    assert "residuals" in node.picture.drawn(bench, version, "ekfac")
