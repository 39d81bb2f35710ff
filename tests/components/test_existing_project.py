"""The tutorial's Dagster project: made from the page, materialised, its upstream changed."""

import re
import sys
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from dagster._utils.test.data_versions import get_stale_status_resolver

import influence_dag as idag

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "dagster_project.md"
BLOCK = re.compile(r"^```python\n(# (clinic/\S+)\n)?(.*?)^```", flags=re.MULTILINE | re.DOTALL)
CHANGED = "influence/tumours/dataset"


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """The page followed to its end; what was stale before its last step is in `stale`."""
    root = tmp_path_factory.mktemp("clinic")
    (root / "clinic").mkdir()
    (root / "pyproject.toml").touch()
    steps = []
    for _, file, text in BLOCK.findall(PAGE.read_text()):
        (root / file).write_text(text) if file else steps.append(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DAGSTER_HOME", "")  # the page sets it
        patch.setattr(sys, "path", [str(root), *sys.path])
        names: dict = {"stale": []}
        for text in steps:
            exec(compile(text, PAGE.name, "exec"), names)
            names["stale"].append(stale(names))
        yield names | {"root": root}
        for name in [each for each in sys.modules if each.partition(".")[0] == "clinic"]:
            del sys.modules[name]


def stale(names) -> set[str]:
    """The keys of the assets that the UI calls unsynced or missing."""
    resolver = get_stale_status_resolver(names["instance"], names["defs"].assets)
    keys = names["defs"].resolve_asset_graph().materializable_asset_keys
    return {key.to_user_string() for key in keys if resolver.get_status(key).name != "FRESH"}


def latest(clinic, key: str) -> dg.AssetMaterialization:
    event = clinic["instance"].get_latest_materialization_event(dg.AssetKey.from_user_string(key))
    return event.asset_materialization


def test_the_study_is_stale_after_the_upstream_asset_and_not_before_or_after(clinic):
    fresh, changed, again = clinic["stale"]
    assert fresh == set()
    assert CHANGED in changed
    assert again == set()
    versions = idag.open_study(clinic["root"] / "results/tumours").version_table("dataset")
    assert [each["version"] for each in versions] == [1, 2]


def test_the_corrected_row_is_what_was_computed(clinic):
    study = idag.open_study(clinic["root"] / "results/tumours")
    found = study.diff("dataset", 1)
    assert {dim: rows for dim, rows in found.changed.items() if rows} == {"train": ["p007"]}


def test_the_dataset_depends_on_the_upstream_asset(clinic):
    graph = clinic["defs"].resolve_asset_graph()
    dataset = graph.get(dg.AssetKey.from_user_string(CHANGED))
    assert {key.to_user_string() for key in dataset.parent_keys} == {
        "influence/tumours/source",
        "warehouse/patients",
    }


def test_the_upstream_asset_came_first(clinic):
    runs = clinic["instance"].get_run_records()
    for record in runs:
        steps = [
            event.step_key
            for event in clinic["instance"].all_logs(record.dagster_run.run_id)
            if event.dagster_event and event.dagster_event.event_type_value == "STEP_START"
        ]
        if "influence__tumours__dataset" in steps:
            assert steps.index("warehouse__patients") < steps.index("influence__tumours__dataset")


def test_their_assets_have_read_the_artifacts(clinic):
    influences = idag.open_study(clinic["root"] / "results/tumours")["direct"].influences
    worst = influences.mean("test").idag.bottom_k(20)
    written = pd.read_csv(clinic["root"] / "second_look.csv")
    assert written.train.tolist() == worst.train.values.tolist()
    np.testing.assert_allclose(written.influence, worst, rtol=1e-5)
    by_class = pd.read_csv(clinic["root"] / "by_class.csv", index_col="test")
    np.testing.assert_allclose(by_class, influences.idag.by_label(), rtol=1e-4)
    assert by_class.columns.tolist() == ["benign", "malignant"]


def test_the_assets_say_whose_they_are(clinic):
    specs = {spec.key.to_user_string(): spec for spec in clinic["defs"].resolve_all_asset_specs()}
    spec = specs["influence/tumours/direct/influences"]
    assert list(spec.owners) == ["team:data"]
    assert spec.tags["domain"] == "oncology"


def test_materialisations_say_how_many_rows_and_numbers_there_are(clinic):
    counts = {
        name: latest(clinic, f"influence/tumours/{name}").metadata["dagster/row_count"].value
        for name in ("dataset", "gradients", "direct/influences")
    }
    assert counts == {"dataset": 569, "gradients": 500, "direct/influences": 69}
    (record,) = latest(clinic, "influence/tumours/direct/influences").metadata["arrays"].records
    assert record.data["dims"] == "test × train"
    assert record.data["shape"] == "69 × 500"
    assert record.data["chunks"]


def test_the_same_content_once_more_makes_nothing_stale(clinic, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(clinic["root"] / "history"))
    patients = [dg.AssetKey(["warehouse", "patients"])]
    job, instance = clinic["everything"], clinic["instance"]
    assert job.execute_in_process(instance=instance, asset_selection=patients).success
    assert stale(clinic) == set()
