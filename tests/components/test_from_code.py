"""Studies in definitions that are written in Python, and artifacts as inputs of other assets."""

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dagster._core.types.dagster_type import resolve_dagster_type
from tiny_project import SETTINGS, merged

import influence_dag as idag
from influence_dag.errors import StoreError, StudyError
from influence_dag.study.study import StudySettings


def keys(assets) -> set[str]:
    graph = dg.Definitions(assets=assets).resolve_asset_graph()
    return {key.to_user_string() for key in graph.get_all_asset_keys()}


def settings(**changes) -> dict:
    return merged(SETTINGS, changes)


def test_a_study_is_the_same_from_its_folder_and_from_its_settings(finished_project):
    from_folder = idag.study_assets(finished_project.folder)
    folder = finished_project.folder
    from_settings = idag.study_assets(finished_project.settings, name="tiny", folder=folder)
    assert keys(from_folder) == keys(from_settings) >= {"tiny/source", "tiny/direct/influences"}
    checks = [each for each in from_settings if isinstance(each, dg.AssetChecksDefinition)]
    assert checks, "its checks come with it"


def test_definitions_from_code_have_the_job_and_the_schedule():
    defs = idag.study_definitions(settings(refresh={"schedule": "0 3 * * *"}), name="tiny")
    merged_with = dg.Definitions.merge(dg.Definitions(), defs)
    assert merged_with.resolve_job_def("tiny_refresh")
    assert len(merged_with.schedules or ()) == 1


def test_a_prefix_comes_before_the_study():
    given = StudySettings.model_validate(settings(dagster={"key_prefix": "my-team/influence"}))
    found = keys(idag.study_assets(given, name="tiny"))
    assert found >= {"my-team/influence/tiny/source", "my-team/influence/tiny/cg/influences"}
    assert all(key.startswith("my-team/influence/tiny/") for key in found)


def test_upstream_assets_change_no_number_and_no_code_version():
    plain, after = settings(), settings(data={"deps": ["warehouse/patients", "raw"]})
    versions = [
        {
            spec.key: spec.code_version
            for spec in idag.study_definitions(each, name="tiny").resolve_all_asset_specs()
        }
        for each in (plain, after)
    ]
    assert versions[0].items() <= versions[1].items()


def test_upstream_assets_have_nothing_read_or_computed_again(project):
    """And `influence-dag materialize` runs the study alone, where they are not defined."""
    before = project.data_versions()
    project.write_settings(data={"deps": ["warehouse/patients"]}, dagster={"tags": {"a": "b"}})
    assert project.materialize().version_table("dataset")[-1]["version"] == 1
    assert project.data_versions() == before


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: idag.study_assets(settings()), "settings have no name"),
        (lambda: idag.study_assets("somewhere", name="a"), "leave out name and folder"),
        (lambda: idag.study_assets(settings(), name="two words"), "'two words' has characters"),
        (
            lambda: idag.study_assets(settings(damping=-1), name="a"),
            r"a: damping\.number: Input should be greater than or equal to 0",
        ),
        (
            lambda: idag.study_assets(settings(refresh={"schedule": "@daily"}), name="a"),
            "a: refresh needs a schedule or a sensor, .* take study_definitions",
        ),
        (
            lambda: idag.study_assets(settings(refresh={"automation": True}), name="a"),
            "a: refresh needs a schedule or a sensor, .* take study_definitions",
        ),
        (
            lambda: idag.study_assets(settings(data={"deps": ["a/report"]}), name="a"),
            "data.deps names a/report, which is made from this study's data",
        ),
        (
            lambda: idag.study_assets(settings(data={"deps": ["a//b"]}), name="a"),
            "'a//b' is no asset key",
        ),
        (
            lambda: idag.study_assets(settings(data={"deps": ["b", "b"]}), name="a"),
            "deps names 'b' twice",
        ),
        (
            lambda: idag.study_assets(settings(dagster={"owners": ["nobody"]}), name="a"),
            "'nobody' is neither an address of mail nor team:name",
        ),
        (
            lambda: idag.study_assets(settings(dagster={"tags": {"a b": "c"}}), name="a"),
            "names and values of tags have up to 63",
        ),
    ],
)
def test_what_cannot_be_a_study_is_told(ask, words):
    with pytest.raises(StudyError, match=words):
        ask()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"deps": ["a b"]}}, "'a b' is no asset key"),
        ({"dagster": {"key_prefix": "ä"}}, "'ä' is no asset key"),
        ({"dagster": {"key_prefix": "a:b"}}, "'a:b' is no asset key"),
        ({"dagster": {"owners": ["a@b.c"]}}, "'a@b.c' is neither"),
        ({"dagster": {"owners": ["ä@example.org"]}}, "'ä@example.org' is neither"),
        ({"dagster": {"owners": [".a@example.org"]}}, "'.a@example.org' is neither"),
    ],
    ids=str,
)
def test_what_dagster_takes_for_no_name_is_refused_with_the_settings(changes, words):
    """Dagster would say so later, of all studies of the project."""
    with pytest.raises(StudyError, match=words):
        idag.study_assets(settings(**changes), name="a")


# Artifacts as inputs


def loaded(project, key: str, kind: object):
    """What an input of that type gets, of an asset that is known by its key alone."""
    manager = idag.StudyIOManager(path=str(project.store.parent))
    wanted = resolve_dagster_type(kind)
    asset = dg.AssetKey(key.split("/"))
    with dg.build_input_context(asset_key=asset, dagster_type=wanted) as context:
        return manager.load_input(context)


@pytest.mark.parametrize("key", ["tiny/direct/influences", "of/a/team/tiny/direct/influences"])
def test_an_artifact_is_found_by_its_key(finished_project, key):
    found = loaded(finished_project, key, xr.DataArray)
    assert found.chunks is not None, "lazy"
    expected = finished_project.results["direct"].influences
    xr.testing.assert_identical(found.compute(), expected.compute())


def test_an_artifact_is_had_as_annotated(finished_project):
    as_set = loaded(finished_project, "tiny/cg/influence_factors", xr.Dataset)
    assert {"influence_factors", "residual"} <= set(as_set.variables)
    array = loaded(finished_project, "tiny/cg/influence_factors", xr.DataArray)
    assert array.name == "influence_factors"
    assert isinstance(loaded(finished_project, "tiny/direct/summary", None), xr.Dataset)
    assert loaded(finished_project, "tiny/cg/influences", None).name == "influences"


@pytest.mark.parametrize(
    ("key", "kind", "words"),
    [
        ("tiny/direct/influences", pd.DataFrame, "cannot be had as DataFrame"),
        (
            "tiny/direct/summary",
            xr.DataArray,
            r"cannot be had as DataArray: .*Dataset of bottom_",
        ),
        ("tiny/lissa/influences", xr.DataArray, r"lissa/influences is no stored artifact: /"),
        ("influences", xr.DataArray, "is no stored artifact"),
    ],
)
def test_what_cannot_be_loaded_is_told(finished_project, key, kind, words):
    with pytest.raises(StoreError, match=words):
        loaded(finished_project, key, kind)


def test_nothing_is_stored_with_it():
    @dg.asset(io_manager_key="results")
    def theirs() -> int:
        return 3

    defs = dg.Definitions(assets=[theirs], resources={"results": idag.StudyIOManager()})
    job = defs.resolve_implicit_global_asset_job_def()
    with pytest.raises(StoreError, match="theirs: the I/O manager of influence_dag only loads"):
        job.execute_in_process(instance=dg.DagsterInstance.ephemeral())


def test_an_artifact_of_another_code_location(finished_project):
    results = idag.StudyIOManager(path=str(finished_project.store.parent))
    influences = dg.AssetIn(["tiny", "direct", "influences"], input_manager_key="results")

    @dg.asset(ins={"influences": influences})
    def strongest(influences: xr.DataArray, studies: idag.StudyResource) -> dg.MaterializeResult:
        same = studies.open("tiny")["direct"].influences
        np.testing.assert_array_equal(influences, same)
        return dg.MaterializeResult(metadata={"strongest": float(influences.max())})

    studies = idag.StudyResource(path=str(finished_project.store.parent))
    spec = dg.AssetSpec(["tiny", "direct", "influences"])
    resources = {"results": results, "studies": studies}
    defs = dg.Definitions(assets=[spec, strongest], resources=resources)
    done = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dg.DagsterInstance.ephemeral()
    )
    (event,) = done.asset_materializations_for_node("strongest")
    expected = finished_project.results["direct"].influences.max()
    assert event.metadata["strongest"].value == float(expected)


def test_an_input_in_the_study_s_own_project_needs_no_manager(finished_project):
    defs = dg.Definitions(assets=idag.study_assets(finished_project.folder))
    value = defs.load_asset_value(
        ["tiny", "direct", "perturbation_influences"], python_type=xr.DataArray
    )
    expected = finished_project.results.perturbation("direct")
    np.testing.assert_array_equal(value, expected)
