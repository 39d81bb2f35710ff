"""How long a click takes, by the stopwatch of `benchmarks/explorer.py`."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("uvicorn")
FILE = Path(__file__).parents[2] / "benchmarks/explorer.py"


@pytest.fixture
def stopwatch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stopwatch", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_click_takes_half_a_second_of_the_processor(stopwatch, monkeypatch, tmp_path):
    """Of a new server, on a small store: nothing slow is imported, and no array read whole."""
    for name, value in {"TEST": 20, "TRAIN": 500, "COLD": 1, "WARM": 1}.items():
        monkeypatch.setattr(stopwatch, name, value)
    stopwatch.make(tmp_path)
    for kind, times in stopwatch.measure(tmp_path).items():
        assert times["cold CPU"] <= stopwatch.LIMIT, kind


@pytest.mark.campaign
def test_campaign_no_click_takes_half_a_second_on_a_hundred_million_pairs(stopwatch, tmp_path):
    stopwatch.make(tmp_path)
    for kind, times in stopwatch.measure(tmp_path).items():
        assert times["cold, worst"] <= stopwatch.LIMIT, kind
