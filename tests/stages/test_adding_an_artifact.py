"""An artifact in one file: graph, assets, checks, picture, status and the documentation have it."""

from collections.abc import Iterator

import numpy as np
import pytest
from rooms import artifacts_table
from tiny_project import Project

from influence_dag.components.assets import code_version, study_definitions
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming
from influence_dag.stages.artifacts import Artifact, Picture, Promise
from influence_dag.stages.checks import Outcome
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.graph import add_artifacts, artifacts
from influence_dag.stages.status import status
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.study import Study

NAME, READS, FORMULA = "direct/spread", naming.influences("direct"), 1


def nodes(study: Study) -> Iterator[Artifact]:
    if "direct" in study.settings.methods.names:
        yield Artifact(
            NAME,
            (READS,),
            f"{__name__}:refresh",
            FORMULA,
            frozenset({"zarr"}),
            "Standard deviation of each test row's influences.",
            ("data", "compute.dtype", "model", "damping", "method"),
            "direct",
            checks=(Promise("positive", f"{__name__}:positive", (), "Above 0."),),
            picture=Picture(f"{__name__}:drawn", ("spread",)),
        )


def refresh(bench: Workbench, method: str) -> Update:
    influences = bench.require(READS)

    def produce() -> Whole:
        test = bench.axis_of(influences, "test")
        values = influences.read("influences").std(axis=-1)
        return Whole({"spread": (("test",), values, {})}, bench.attributes(), {}, test.coordinates)

    return refresh_whole(bench, NAME, fingerprint(NAME, FORMULA, influences.data_version), produce)


def positive(bench: Workbench) -> Outcome:
    smallest = float(bench.require(NAME).read("spread").min())
    return Outcome(smallest > 0, f"smallest {smallest:.2g}")


def drawn(bench: Workbench, version: Version, method: str | None) -> dict:
    return {"spread": [{"test row": "first", "spread": f"{version.read('spread')[0]:.3g}"}]}


@pytest.fixture(scope="module", autouse=True)
def _spread() -> Iterator[None]:
    take_away = add_artifacts(nodes)
    yield
    take_away()


@pytest.fixture(scope="module")
def spread(finished_project, tmp_path_factory) -> Project:
    """A project whose artifacts are all there but this one."""
    return finished_project.copy(tmp_path_factory.mktemp("spread"))


def node_of(project: Project) -> Artifact:
    *_, last = artifacts(project.bench().study)
    return last


def test_before_it_is_made_status_says_so(spread):
    told = status(spread.folder)
    assert told.outdated == [NAME]
    assert told[NAME].why == "1 not computed"


def test_made_it_is_among_the_results_and_follows_what_it_reads(spread):
    bench, node = spread.bench(), node_of(spread)
    assert not node.refresh(bench).is_current
    results = spread.results
    wanted = results["direct"].influences.std("train")
    np.testing.assert_allclose(results.open(NAME).spread, wanted)
    assert node.refresh(spread.bench()).is_current
    assert status(spread.folder).is_current


def test_its_checks_and_its_picture_are_asked(spread):
    bench, node = spread.bench(), node_of(spread)
    node.refresh(bench)
    assert [check.outcome(bench).passed for check in node.checks] == [True]
    assert node.picture is not None
    assert [*node.picture.drawn(bench, bench.require(NAME), "direct")] == ["spread"]


def test_dagster_has_an_asset_of_it_with_its_lineage_and_checks(spread):
    study = spread.bench().study
    definitions = study_definitions(study)
    specs = {"/".join(spec.key.path): spec for spec in definitions.resolve_all_asset_specs()}
    spec = specs[f"tiny/{NAME}"]
    assert ["/".join(dep.asset_key.path) for dep in spec.deps] == [f"tiny/{READS}"]
    assert spec.code_version == code_version(study, node_of(spread))
    checks = {
        ("/".join(check.asset_key.path), check.name)
        for each in definitions.asset_checks or ()
        for check in each.check_specs
    }
    assert (f"tiny/{NAME}", "positive") in checks


def test_the_table_of_artifacts_has_it(spread):
    row = next(row for row in artifacts_table(spread.bench().study).splitlines() if NAME in row)
    assert "`direct/influences`" in row
    assert "`positive`" in row
    assert "`spread`" in row


def test_another_formula_or_setting_is_another_version_of_the_code(spread):
    import dataclasses

    node, study = node_of(spread), spread.bench().study
    raised = dataclasses.replace(node, formula=2)
    assert code_version(study, raised) != code_version(study, node)
