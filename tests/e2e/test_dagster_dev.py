"""The digits study, materialised through Dagster's server, read with xarray, seen in a browser.

One file, so that the tests share a server whichever way they are spread over processes.
"""

import shutil
import time
import warnings
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import xarray as xr
from conftest import GRAPH
from dagster_server import ROWS
from matplotlib.image import imread

from influence_dag.components.assets import study_definitions
from influence_dag.components.keys import asset_key
from influence_dag.components.metadata import WHY
from influence_dag.explorer.marks import Marks
from influence_dag.study.loading import load_study

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


def test_the_server_starts_without_alarming_lines(server):
    log = (server.project.parent / "dagster-dev.log").read_text()
    assert "Serving dagster-webserver" in log
    lines = [line for line in log.splitlines() if "Warning" in line or "dagster.yaml" in line]
    assert lines == []


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
    assert influences.sizes == ROWS
    assert influences.test.values[0] == "test-0000"
    assert influences.notnull().all()
    difference = np.linalg.norm(opened["cg"].influences - influences) / np.linalg.norm(influences)
    assert difference < 1e-4
    values = perturbation.perturbation_influences
    assert values.sizes == ROWS | {"row": 8, "col": 8}
    assert values.sel(test="test-0007", train="train-0003").notnull().all()


@pytest.fixture(scope="module")
def second_run(server, finished_run) -> tuple[str, list[str], list[str]]:
    """The id of a run after which nothing has changed but two marks; versions before and after."""
    store = server.project / "data/store/digits"
    marks = Marks(str(store))
    marks.put("train-0003", "drop", note="<b>blurred</b>")
    marks.put("train-0007", "keep")
    before = sorted(path.name for path in store.glob("**/versions/*"))
    run = server.launch("digits_refresh")
    assert server.wait(run, seconds=120) == "SUCCESS"
    return run, before, sorted(path.name for path in store.glob("**/versions/*"))


def test_a_second_run_computes_nothing(second_run):
    _, before, after = second_run
    assert before == after


def test_a_run_observes_what_was_marked_in_the_explorer(server, second_run):
    (seen,) = [
        event
        for event in server.events(second_run[0])
        if event["__typename"] == "ObservationEvent"
        and event["assetKey"]["path"] == ["digits", "edits"]
    ]
    told = {entry["label"]: entry.get("intValue") for entry in seen["metadataEntries"]}
    assert told == {"marks": 2, "to_drop": 1, "to_relabel": 0, "edits": 0}


def observe(server) -> dict[str, list[str]]:
    assert server.wait(server.observe("digits", "source"), seconds=120) == "SUCCESS"
    return server.stale("digits")


def observe_here(server) -> None:
    """The same without a process of the server's, into its history."""
    study = load_study(server.project / "assets/digits")
    look = dg.define_asset_job(
        "look", [asset_key(study, "source")], executor_def=dg.in_process_executor
    )
    defs = dg.Definitions.merge(study_definitions(study), dg.Definitions(jobs=[look]))
    with dg.DagsterInstance.from_config(str(server.project.parent / "home")) as instance:
        assert defs.resolve_job_def("look").execute_in_process(instance=instance).success


@pytest.fixture(scope="module")
def edited(server, finished_run):
    """Three labels of the training file are others, and Dagster has looked at it."""
    file = server.project / "data/digits/train.csv"
    text = file.read_text()
    assert server.stale("digits") == {}, "as it was"
    head, *rows = text.splitlines()
    for place in (4, 7, 304):
        rows[place] = f"{rows[place].rpartition(',')[0]},0"
    file.write_text("\n".join([head, *rows]) + "\n")
    yield observe(server)
    file.write_text(text)
    observe_here(server)
    assert server.stale("digits") == {}, "the same content again"


def test_an_edited_and_observed_file_makes_the_dataset_unsynced(edited):
    assert edited == {"dataset": ["has a new data version"]}, "the root of it, the source"


# What a person sees

with_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")


@pytest.fixture(autouse=True)
def _left(request):
    """No page goes on asking the server while others are tested."""
    yield
    if "page" in request.fixturenames:
        request.getfixturevalue("page").leave()


INTRUSIONS = ("sign up", "join us", "newsletter", "email address", "subscribe")


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("screenshots")


def assert_not_blank(path: Path) -> None:
    """Neither one colour nor a spinner on white."""
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 800
    assert np.mean(np.abs(pixels - pixels[0, 0]).max(axis=-1) > 0.05) > 0.01


def assert_unobstructed(text: str) -> None:
    assert [words for words in INTRUSIONS if words in text.lower()] == []


@with_browser
def test_the_graph_of_the_study(page, server, finished_run, album):
    text = page.open(f"{server.url}/{GRAPH}", showing="hessian")
    for name in ("source", "dataset", "model", "gradients", "influence_factors", "report"):
        assert name in text
    assert text.count("influence_factors") >= 2, "one for each method"
    assert_unobstructed(text)
    page.photograph(album / "graph.png")
    assert_not_blank(album / "graph.png")
    page.click("List")
    page.wait_until("(document.body.innerText.match(/Materialized/g) ?? []).length >= 14")
    assert "Failed" not in page.run("document.body.innerText")
    page.photograph(album / "list.png")


@with_browser
def test_the_graph_after_an_edit_says_what_is_unsynced(page, server, edited, album):
    url = f"{server.url}/assets/digits/dataset?view=overview"
    page.open(url, showing="Unsynced")
    page.wait_for("source")  # what the files were is shown later than the rest of the page
    page.photograph(album / "unsynced.png")
    assert_not_blank(album / "unsynced.png")


def assert_shown_with_why(page, picture: str, file: Path) -> None:
    """The picture of an asset that is open, in its dialog, with why it matters below it."""
    page.wait_for("[Show Markdown]")
    page.click("[Show Markdown]")
    page.wait_for("Close")
    assert picture_appears(page), "no picture within 30 s"
    assert WHY[picture] in " ".join(page.run("document.body.innerText").split())
    page.photograph(file)
    assert_not_blank(file)
    page.click("Close")


def picture_appears(page, timeout: float = 30.0) -> bool:
    """The dialog is there before its picture is decoded."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if any(s.startswith("data:image/png") and width > 200 for s, width in page.images()):
            return True
        time.sleep(0.2)
    return False


@with_browser
@pytest.mark.parametrize(
    ("asset", "picture"),
    [
        ("hessian", "spectrum"),
        ("cg/influence_factors", "convergence"),
        ("direct/influences", "histogram"),
        ("direct/perturbation_influences", "example"),
        ("direct/summary", "strongest"),
    ],
    ids=lambda each: each.replace("/", "-"),
)
def test_an_asset_shows_its_numbers_and_its_picture_and_why(
    page, server, finished_run, album, asset, picture
):
    text = page.open(f"{server.url}/assets/digits/{asset}?view=overview", showing="blocks_computed")
    assert "Materialized" in text or "Latest materialization" in text
    assert_unobstructed(text)
    if "/" in asset:
        page.wait_for(f"{asset.partition('/')[0]} · ")  # the method is named
    assert_shown_with_why(page, picture, album / f"{asset.replace('/', '-')}.png")


@with_browser
@pytest.mark.parametrize(
    ("asset", "picture"),
    [
        ("validation/leave_one_out", "agreement"),
        ("validation/datamodels", "scores"),
        ("validation/label_errors", "detection"),
    ],
    ids=lambda each: each.replace("/", "-"),
)
def test_refits_are_shown_against_what_was_predicted(
    page, server, validated, album, asset, picture
):
    page.open(f"{server.url}/assets/tiny/{asset}?view=overview", showing="[Show Markdown]")
    assert_shown_with_why(page, picture, album / f"{picture}.png")


@with_browser
def test_the_report_says_what_may_be_trusted_and_why(page, server, validated, album):
    url = f"{server.url}/assets/tiny/report?view=overview"
    text = page.open(url, showing="The whole page: influence-dag report")
    text = " ".join(text.split())
    assert "Trust these" in text, "the verdict"
    assert "rows left out and refitted, predicted and actual changes correlate" in text, "a reason"
    assert "the worst residual of a solve is" in text, "a row of what was measured"
    assert_unobstructed(text)
    page.photograph(album / "report.png")
    assert_not_blank(album / "report.png")
