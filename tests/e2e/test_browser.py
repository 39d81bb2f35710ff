"""What a person sees in the UI: the graph, an asset's page, its pictures, no dialog in the way."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from matplotlib.image import imread

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
]
INTRUSIONS = ("sign up", "join us", "newsletter", "email address", "subscribe")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


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


def test_the_graph_of_the_study(page, server, finished_run, album):
    url = f"{server.url}/locations/__repository__@influence_dag/asset-groups/digits"
    text = page.open(url, showing="hessian")
    for name in ("source", "dataset", "model", "gradients", "influence_factors", "report"):
        assert name in text
    assert text.count("influence_factors") >= 2, "one for each method"
    assert_unobstructed(text)
    page.photograph(album / "graph.png")
    assert_not_blank(album / "graph.png")


@pytest.mark.parametrize(
    "asset",
    [
        "hessian",
        "cg/influence_factors",
        "direct/influences",
        "direct/perturbation_influences",
        "direct/summary",
    ],
)
def test_an_asset_shows_its_numbers_and_its_picture(page, server, finished_run, album, asset):
    text = page.open(f"{server.url}/assets/digits/{asset}?view=overview", showing="blocks_computed")
    assert "Materialized" in text or "Latest materialization" in text
    assert_unobstructed(text)
    page.wait_for("[Show Markdown]")
    page.click("[Show Markdown]")
    page.wait_for("Close")
    assert any(
        source.startswith("data:image/png") and width > 200 for source, width in page.images()
    )
    file = album / f"{asset.replace('/', '-')}.png"
    page.photograph(file)
    assert_not_blank(file)
    page.click("Close")
