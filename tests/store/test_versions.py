import errno
import gc
import os
import shutil
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from stored_sample import NAME, Sample, chunk_files, refresh, write_chunk

from influence_dag.store import ArtifactStore
from influence_dag.store.manifests import Results
from influence_dag.store.published import StoredVersion
from influence_dag.store.testing.planning import SHAPES

SAMPLE = Sample()


def new_files(before, after):
    return {name for name, (inode, _) in after.items() if before.get(name, (0,))[0] != inode}


def test_plain_xarray_reads_the_current_version_with_names_and_without_a_warning(store):
    refresh(store, SAMPLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(store.root / NAME / "current")
    np.testing.assert_array_equal(dataset.influences.values, SAMPLE.values)
    assert list(dataset.data_vars) == ["influences"]
    assert set(dataset.coords) == {"test", "train", "valid"}
    assert dataset.influences.dims == ("test", "train")
    assert dataset.influences.attrs == {"long_name": "influence"}
    assert dataset.attrs["units"] == "loss"
    assert dataset.attrs["written_by"] == "a test"
    assert float(dataset.influences.sel(test="t3", train="r7")) == 3007
    assert dataset.valid.dtype == bool


def test_planning_and_refreshing_what_is_current_write_nothing(store):
    store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
    assert store.current(NAME) is None
    assert not store.root.exists()
    first = refresh(store, SAMPLE).version
    assert refresh(store, SAMPLE).version.path == first.path
    assert {path.name for path in first.path.parent.iterdir()} == {"000001"}


def test_chunks_that_did_not_change_are_hard_links(store):
    refresh(store, SAMPLE)
    before = chunk_files(store)
    draft = refresh(store, SAMPLE.with_train({9: -5.0}))
    after = chunk_files(store)
    assert new_files(before, after) == {"0.1", "1.1", "2.1"}
    assert draft.bytes_written == sum(len(after[f"{i}.1"][1]) for i in range(3))
    assert chunk_files(store, 1) == before, "the older version's files are untouched"


@pytest.mark.parametrize(("sample", "outdated"), SHAPES.values(), ids=SHAPES)
def test_under_another_shape_they_are_hard_links_too(store, sample, outdated):
    refresh(store, SAMPLE)
    before = chunk_files(store)
    refresh(store, sample)
    assert new_files(before, chunk_files(store)) == {f"{i}.{j}" for i, j in outdated}


def test_chunks_that_hold_only_nan_are_files(store):
    refresh(store, replace(SAMPLE, test=(np.nan,) * 10))
    assert len(chunk_files(store)) == 9


def test_results_that_are_dropped_leave_no_file(store):
    with store.new_version(NAME, SAMPLE.layout) as draft:
        for index in draft.outdated(SAMPLE.expected)["influences"]:
            write_chunk(draft, SAMPLE, index)
        draft.set_result("spectrum", ("rank",), np.arange(3.0))
    assert (draft.version.path / "spectrum").is_dir()
    version = refresh(store, SAMPLE.with_train({0: 2.5})).version
    assert version.results == Results()
    assert not (version.path / "spectrum").exists()


def test_versions_are_written_where_hard_links_are_impossible(store, monkeypatch):
    link = os.link

    def version_of(path):
        return str(path).partition("/versions/")[2].partition("/")[0]

    def within_a_version(source, target):
        if version_of(source) != version_of(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", within_a_version)
    refresh(store, SAMPLE)
    before = chunk_files(store)
    changed = SAMPLE.with_train({0: 77.0})
    draft = refresh(store, changed)
    assert draft.chunks_written == 3
    np.testing.assert_array_equal(draft.version.open().influences.values, changed.values)
    assert chunk_files(store, 1) == before
    assert store.plan(NAME, changed.layout, changed.expected).up_to_date


def test_everything_new_is_on_the_disk_before_it_has_its_name(store, fsynced, monkeypatch):
    refresh(store, SAMPLE)
    fsynced.clear()
    rename = Path.rename
    published = {path.stat().st_ino for path in (store.root / NAME).rglob("*") if path.is_file()}

    def renamed(path, target):
        fsynced.append(f"{path} renamed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    draft = refresh(store, SAMPLE.with_train({9: -5.0}))
    folder = draft.contents.path
    durable = fsynced[: fsynced.index(f"{folder} renamed")]
    new = {path for path in draft.version.path.rglob("*") if path.stat().st_ino not in published}
    names = {path.relative_to(draft.version.path) for path in new}
    assert set(map(Path, durable)) == {
        draft.contents.path,
        *(draft.contents.path / name for name in names),
    }
    chunks = {f"influences/c.{j}.1" for j in range(3)}
    written = {str(name) for name in names if (draft.version.path / name).is_file()}
    assert written == {"blocks.npz", "manifest.json", "zarr.json", *chunks}
    after = fsynced[len(durable) + 1 :]
    assert after == [str(folder.parent), str(folder.parent.parent)]


def test_a_current_link_that_was_set_back_is_never_removed(tmp_path):
    store = ArtifactStore(tmp_path, keep_versions=2)
    refresh(store, SAMPLE)
    refresh(store, SAMPLE.with_train({0: 1.0}))
    link = tmp_path / NAME / "current"
    link.unlink()
    link.symlink_to("versions/000001")
    assert store.version(NAME).number == 1
    store.keep_versions = 1
    assert store.gc(NAME) == [f"{NAME}/versions/000002"]
    assert store.version(NAME).number == 1
    assert refresh(store, SAMPLE.with_train({0: 2.0})).version.number == 2


def test_what_came_and_went_is_told_without_opening_a_dataset(store, monkeypatch):
    """Each materialisation says it of its artifact, and xarray takes as long as a small refresh."""
    refresh(store, SAMPLE)
    refresh(store, replace(SAMPLE, train=tuple(range(22)), test=tuple(range(9))))
    monkeypatch.delattr(StoredVersion, "open")
    difference = store.diff(NAME, 1)
    assert difference.added == {"test": [], "train": ["r20", "r21"]}
    assert difference.removed == {"test": ["t9"], "train": []}


def test_an_artifact_can_be_moved_and_copied(store, tmp_path):
    refresh(store, SAMPLE)
    shutil.copytree(store.root, tmp_path / "copy", symlinks=True, copy_function=shutil.copy)
    moved = ArtifactStore(tmp_path / "copy")
    assert moved.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
    np.testing.assert_array_equal(moved.version(NAME).open().influences.values, SAMPLE.values)


def test_zarr_itself_reads_a_version(store):
    refresh(store, SAMPLE)
    group = zarr.open_group(store.root / NAME / "current", mode="r")
    np.testing.assert_array_equal(group["influences"][...], SAMPLE.values)
    assert set(group.array_keys()) == {"influences", "test", "train", "valid"}


def test_who_looks_on_keeps_nothing_of_versions_that_are_gone(store):
    """An explorer or a notebook that stays open would keep what there ever was."""
    reader = ArtifactStore(store.root)
    refresh(store, SAMPLE)
    first = reader.version(NAME)
    first.keys("influences")
    kept, first = weakref.ref(first), None
    for content in range(6):
        refresh(store, SAMPLE.with_train({3: 50.0 + content}))
        reader.version(NAME).keys("influences")
    gc.collect()
    assert kept() is None
