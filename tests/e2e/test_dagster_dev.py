"""The digits study, materialised through Dagster's server, read with xarray alone."""

import warnings

import numpy as np
import pytest
import xarray as xr

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def events(server, finished_run):
    return server.events(finished_run)


def test_every_asset_is_materialised(events):
    seen = {
        "/".join(event["assetKey"]["path"][1:])
        for event in events
        if event["__typename"] == "MaterializationEvent"
    }
    assert seen == {
        *("dataset", "model", "gradients", "hessian", "report"),
        *(f"direct/{what}" for what in ("curvature", "influence_factors", "influences")),
        *("direct/perturbation_influences", "direct/summary", "cg/summary"),
        *(f"cg/{what}" for what in ("curvature", "influence_factors", "influences")),
    }


def test_all_checks_have_run_and_passed(events):
    found = [
        event["evaluation"]
        for event in events
        if event["__typename"] == "AssetCheckEvaluationEvent"
    ]
    assert len(found) >= 14
    assert [check for check in found if not check["success"]] == []


def test_materialisations_show_pictures(events):
    labels = {
        "/".join(event["assetKey"]["path"][1:]): {e["label"]: e["__typename"] for e in entries}
        for event in events
        if (entries := event.get("metadataEntries"))
    }
    assert labels["hessian"]["spectrum"] == "MarkdownMetadataEntry"
    assert labels["cg/influence_factors"]["convergence"] == "MarkdownMetadataEntry"
    assert labels["direct/influences"]["histogram"] == "MarkdownMetadataEntry"
    assert labels["direct/summary"]["strongest"] == "MarkdownMetadataEntry"
    assert labels["direct/perturbation_influences"]["example"] == "MarkdownMetadataEntry"
    for entries in labels.values():
        assert {"blocks_computed", "blocks_reused", "bytes_written", "seconds", "arrays"} <= set(
            entries
        )


def test_plain_xarray_reads_what_was_stored(server, finished_run):
    store = server.project / "data/store/digits"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = {
            method: xr.open_zarr(store / method / "influences/current")
            for method in ("direct", "cg")
        }
        perturbation = xr.open_zarr(store / "direct/perturbation_influences/current")
    influences = opened["direct"].influences.load()
    assert influences.sizes == {"test": 297, "train": 1500}
    assert influences.test.values[0] == "test-0000"
    assert influences.notnull().all()
    difference = np.linalg.norm(opened["cg"].influences - influences) / np.linalg.norm(influences)
    assert difference < 1e-4
    values = perturbation.perturbation_influences
    assert values.sizes == {"test": 297, "train": 1500, "row": 8, "col": 8}
    assert values.sel(test="test-0007", train="train-0003").notnull().all()


def test_a_second_run_computes_nothing(server, finished_run):
    versions = server.project.joinpath("data/store/digits")
    before = sorted(path.name for path in versions.glob("**/versions/*"))
    run = server.launch("digits_refresh")
    assert server.wait(run, seconds=120) == "SUCCESS"
    assert sorted(path.name for path in versions.glob("**/versions/*")) == before
