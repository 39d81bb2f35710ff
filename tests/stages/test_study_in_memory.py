"""A study that is kept in memory has the numbers of one that is kept in a folder, bit for bit."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from tiny_project import Project

from influence_dag import open_study
from influence_dag.errors import StoreError, StudyError
from influence_dag.query.text import describe
from influence_dag.stages.status import status
from influence_dag.store.memory import discard
from influence_dag.study.loading import load_study


@pytest.fixture
def address():
    yield (address := f"memory://{uuid.uuid4().hex}")
    discard(address)


@pytest.fixture
def in_memory(finished_project, tmp_path, address) -> Project:
    project = finished_project.copy(tmp_path, artifacts=())
    project.write_settings(store={"path": address})
    project.refresh()
    return project


def test_every_artifact_has_the_same_keys_labels_and_numbers(finished_project, in_memory, address):
    stored, kept = finished_project.results, open_study(f"{address}/tiny")
    assert kept.artifacts == stored.artifacts
    for name in stored.artifacts:
        there, here = stored.store.version(name), kept.store.version(name)
        assert here.data_version == there.data_version, name
        assert here.parts == there.parts
        assert here.verify(checksums=True) == ()
        for variable in there.variables:
            np.testing.assert_array_equal(here.keys(variable), there.keys(variable))
            assert here.read(variable).tobytes() == there.read(variable).tobytes(), variable
    for method in stored.methods:
        assert kept[method].influences.identical(stored[method].influences)


def test_it_is_refreshed_planned_and_described_as_any_other(in_memory, address):
    assert all(update.is_current for update in in_memory.refresh().values())
    assert status(in_memory.folder).is_current
    in_memory.edit("train", 3, height=0.25)
    in_memory.refresh()
    results = open_study(f"{address}/tiny")
    assert results.diff("dataset", 1).changed["train"] == ["train-03"]
    said = describe(results)
    assert f"tiny: stored in {address}/tiny" in said
    assert f'idag.open_study("{address}/tiny")' in said
    assert "xarray.open_zarr" not in said, "nobody else can open it"
    assert "explore" not in said, "nor can another process"


def test_the_same_rows_are_computed_again_and_no_others(finished_project, in_memory, tmp_path):
    on_disk = finished_project.copy(tmp_path / "beside")
    for project in (on_disk, in_memory):
        project.edit("train", 3, height=0.25)
    there, here = on_disk.refresh(), in_memory.refresh()
    for name, update in there.items():
        told = (update.blocks_computed, update.blocks_reused, update.reasons)
        mine = here[name]
        assert (mine.blocks_computed, mine.blocks_reused, mine.reasons) == told, name
        assert mine.data_version == update.data_version
        assert mine.address.startswith("memory://")


def test_the_whole_job_of_dagster_runs_on_it(finished_project, tmp_path, address):
    project = finished_project.copy(tmp_path, artifacts=())
    project.write_settings(store={"path": address})
    results = project.materialize()
    assert results.store.address == f"{address}/tiny"
    stored = finished_project.results
    for method in stored.methods:
        np.testing.assert_array_equal(
            results[method].influences.values, stored[method].influences.values
        )
    assert not (tmp_path / "store").exists()


def test_what_is_not_there_is_told(finished_project, tmp_path, address):
    with pytest.raises(StoreError, match=f"no study at {address}/tiny: no artifact has been"):
        open_study(f"{address}/tiny")
    project = finished_project.copy(tmp_path, artifacts=())
    project.write_settings(store={"path": "gs://bucket/studies"})
    with pytest.raises(StudyError, match=r"store.path: gs://bucket/studies is in no kind of store"):
        load_study(project.folder)
    project.write_settings(store={"path": address, "locks": "files"})
    with pytest.raises(StoreError, match=r"has no lock files, and locks is 'files'"):
        project.refresh()


def test_paths_are_those_of_stores_that_are_folders(project, tmp_path):
    study = load_study(project.folder)
    assert study.store_path == project.store == Path(study.store_address)
    results = project.results
    assert results.store.root == project.store
    version = results.store.version("dataset")
    assert version.path == Path(version.address)
    assert version.path.parents[1] == project.store / "dataset"
    updates = project.refresh()
    assert all(update.path.is_relative_to(project.store) for update in updates.values())
    elsewhere = Project(tmp_path / "elsewhere", store={"path": "memory://nowhere"})
    with pytest.raises(StudyError, match="memory://nowhere/tiny, which is no folder"):
        _ = load_study(elsewhere.folder).store_path
