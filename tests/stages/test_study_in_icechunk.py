"""A study that is kept in Icechunk has the numbers of one that is kept in a folder, bit for bit."""

import numpy as np
import pytest
from tiny_project import Project

from influence_dag import open_study
from influence_dag.query.text import describe
from influence_dag.stages.graph import artifacts
from influence_dag.stages.status import status
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study

pytest.importorskip("icechunk")


def test_rows_that_change_are_all_that_is_written_again(finished_project, tmp_path):
    """What follows takes seconds; this is its first artifact."""
    address = f"icechunk+file://{tmp_path}/repositories"
    project = finished_project.copy(tmp_path, artifacts=())
    project.write_settings(store={"path": address})
    refreshed_rows(project)
    kept = open_study(f"{address}/tiny")
    assert kept.open("dataset").identical(finished_project.results.open("dataset"))
    project.edit("test", 3, height=0.25)
    update = refreshed_rows(project)
    assert 0 < update.blocks_computed < update.blocks_reused
    assert kept.diff("dataset", 1).changed["test"] == ["test-03"]
    assert refreshed_rows(project).is_current


def refreshed_rows(project: Project) -> Update:
    bench = Workbench(load_study(project.folder))
    return next(node for node in artifacts(bench.study) if node.name == "dataset").refresh(bench)


def refreshed_twice(finished_project: Project, project: Project, address: str) -> None:
    """From nothing, then after an edit, then with nothing to do: as in a folder."""
    project.write_settings(store={"path": address})
    project.refresh()
    stored, kept = finished_project.results, open_study(f"{address}/tiny")
    assert kept.artifacts == stored.artifacts
    for name in stored.artifacts:
        assert kept.store.version(name).data_version == stored.store.version(name).data_version
    for method in stored.methods:
        assert kept[method].influences.identical(stored[method].influences)
    assert status(project.folder).is_current
    project.edit("train", 3, height=0.25)
    updates = project.refresh()
    assert updates["dataset"].blocks_reused > 0
    assert kept.diff("dataset", 1).changed["train"] == ["train-03"]
    assert all(update.is_current for update in project.refresh().values())
    said = describe(kept)
    assert f"tiny: stored in {address}/tiny" in said
    assert f"influence-dag explore {address}/tiny" in said
    assert "xarray.open_zarr" not in said, "which does not know how"
    mine = kept.perturbation("direct").sel(test="test-03").values
    assert np.isfinite(mine).all()


@pytest.mark.campaign
def test_a_study_is_refreshed_queried_and_compared_in_a_folder_of_icechunk(
    finished_project, tmp_path
):
    project = finished_project.copy(tmp_path, artifacts=())
    refreshed_twice(finished_project, project, f"icechunk+file://{tmp_path}/repositories")


@pytest.mark.campaign
def test_a_study_is_refreshed_queried_and_compared_in_a_bucket(finished_project, tmp_path, bucket):
    project = finished_project.copy(tmp_path, artifacts=())
    refreshed_twice(finished_project, project, f"{bucket}/of/studies")


@pytest.mark.campaign
def test_workers_of_dask_read_it_and_the_driver_writes(finished_project, tmp_path):
    from influence_dag.stages.executors import one_run

    project = finished_project.copy(tmp_path, artifacts=())
    address = f"icechunk+file://{tmp_path}/repositories"
    project.write_settings(store={"path": address}, compute={"executor": "dask", "workers": 2})
    with one_run():
        project.refresh()
    stored, kept = finished_project.results, open_study(f"{address}/tiny")
    for method in stored.methods:
        np.testing.assert_array_equal(kept[method].influences, stored[method].influences)
    assert load_study(project.folder).store_address == f"{address}/tiny"
