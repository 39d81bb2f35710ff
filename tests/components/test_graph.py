"""The graph of a study: its assets, what they read, their versions and checks."""

from pathlib import Path

import dagster as dg
import pytest
from tiny_project import SETTINGS, merged, shown

from influence_dag.components.assets import code_version, study_definitions
from influence_dag.stages.graph import artifacts
from influence_dag.study.loading import load_study
from influence_dag.study.study import Study, StudySettings

ROOT = Path(__file__).parents[2]
GRAPH = {
    "dataset": {"source"},
    "model": {"dataset"},
    "gradients": {"dataset", "model"},
    "hessian": {"dataset", "model"},
    "direct/curvature": {"dataset", "model", "hessian"},
    "direct/influence_factors": {"dataset", "model", "direct/curvature", "hessian"},
    "direct/influences": {
        "dataset",
        "model",
        "direct/curvature",
        "direct/influence_factors",
        "gradients",
    },
    "direct/perturbation_influences": {
        *("dataset", "model", "direct/curvature", "direct/influence_factors")
    },
    "direct/summary": {"dataset", "model", "direct/curvature", "direct/influences", "gradients"},
    "cg/curvature": {"dataset", "model"},
    "cg/influence_factors": {"dataset", "model", "cg/curvature"},
    "cg/influences": {*("dataset", "model", "cg/curvature", "cg/influence_factors", "gradients")},
    "cg/summary": {"dataset", "model", "cg/curvature", "cg/influences"},
    "report": {f"{m}/{what}" for m in ("direct", "cg") for what in ("influences", "summary")},
}


def study(**changes) -> Study:
    return Study("tiny", StudySettings.model_validate(merged(SETTINGS, changes)), ROOT)


def key(name: str, group: str = "digits") -> dg.AssetKey:
    return dg.AssetKey([group, *name.split("/")])


@pytest.fixture(scope="module")
def digits() -> dg.Definitions:
    return study_definitions(load_study(ROOT / "assets/digits"))


@pytest.fixture(scope="module")
def specs(digits) -> dict[dg.AssetKey, dg.AssetSpec]:
    return {spec.key: spec for spec in digits.resolve_all_asset_specs()}


def test_the_graph_of_the_digits_study(specs):
    reads = {
        name: {"/".join(dep.asset_key.path[1:]) for dep in specs[key(name)].deps} for name in GRAPH
    }
    assert reads == GRAPH
    assert specs.keys() == {key(name) for name in (*GRAPH, "source", "edits")}


def test_every_asset_tells_what_it_is(specs):
    for spec in specs.values():
        assert spec.group_name == "digits"
        assert spec.description
        if spec.key not in (key("source"), key("edits")):
            assert spec.kinds
            assert spec.code_version
            assert spec.metadata["store"].value.endswith("/".join(spec.key.path))


def test_nodes_come_after_what_they_read():
    done = {"source"}
    for node in artifacts(load_study(ROOT / "assets/digits")):
        assert done.issuperset(node.reads)
        done.add(node.name)


def test_without_perturbation_and_with_other_methods_the_graph_follows():
    names = {node.name for node in artifacts(study(perturbation=None, methods={"direct": None}))}
    assert names == {"dataset", "model", "gradients", "report"} | {
        f"cg/{what}" for what in ("curvature", "influence_factors", "influences", "summary")
    }


def test_the_job_selects_everything(digits):
    job = digits.resolve_job_def("digits_refresh")
    selected = {found for layer in [job.asset_layer] for found in layer.executable_asset_keys}
    assert selected == {key(name) for name in GRAPH}


def test_all_checks_are_blocking(digits):
    specs = [spec for checks in digits.asset_checks for spec in checks.check_specs]
    assert all(spec.blocking for spec in specs)
    assert {("/".join(spec.asset_key.path[1:]), spec.name) for spec in specs} >= {
        ("dataset", "complete_and_finite"),
        ("model", "at_a_minimum"),
        ("hessian", "symmetric"),
        ("hessian", "damped_positive_definite"),
        ("direct/influence_factors", "residual_below_tolerance"),
        ("cg/influence_factors", "residual_below_tolerance"),
        ("direct/influences", "complete_and_finite"),
        ("direct/perturbation_influences", "complete_and_finite"),
        ("report", "methods_agree"),
    }


EVERYTHING = set(GRAPH)
OF_DIRECT = {name for name in GRAPH if name.startswith("direct")}
OF_CG = {name for name in GRAPH if name.startswith("cg")}
AFTER_THE_CURVATURE = {*OF_DIRECT, *OF_CG, "report"}


@pytest.mark.parametrize(
    ("changes", "affected"),
    [
        ({"store": {"path": "elsewhere", "keep_versions": 2}}, set()),
        ({"compute": {"block_bytes": "1MiB", "batch_size": 7, "device": "cpu"}}, set()),
        ({"compute": {"executor": "dask", "workers": 3}}, set()),
        ({"data": {"features": {"scale": 2.0}}}, EVERYTHING),
        ({"compute": {"dtype": "float32"}}, EVERYTHING),
        ({"model": {"fit": {"seed": 1}}}, EVERYTHING - {"dataset"}),
        ({"damping": 0.5}, AFTER_THE_CURVATURE),
        ({"methods": {"cg": {"rtol": 1e-3}}}, {*OF_CG, "report"}),
        ({"methods": {"lissa": {}}}, {"report"}),
        ({"perturbation": {"max_bytes": 1000}}, set()),
        ({"summary": {"top": 3}}, {"direct/summary", "cg/summary"}),
        (
            {"store": {"max_relative_error": 1e-3}},
            {"direct/influences", "cg/influences", "direct/perturbation_influences"},
        ),
    ],
    ids=shown,
)
def test_code_versions_follow_the_settings_that_matter(changes, affected):
    before, after = study(), study(**changes)
    versions = {node.name: code_version(before, node) for node in artifacts(before)}
    differ = {
        node.name
        for node in artifacts(after)
        if node.name in versions and code_version(after, node) != versions[node.name]
    }
    assert differ == affected


def test_code_versions_are_the_same_in_every_process():
    node = next(iter(artifacts(study())))
    assert code_version(study(), node) == code_version(study(), node)
    assert code_version(study(), node).startswith("0.1.0-")
