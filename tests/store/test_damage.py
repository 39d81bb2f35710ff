"""What folders add to the contract about damage: times, clocks, links."""

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from stored_sample import NAME, Sample, refresh

from influence_dag.errors import StoreError
from influence_dag.files import stamp, write_atomically
from influence_dag.store import ArtifactStore

SAMPLE = Sample()


@pytest.fixture
def version(store):
    return refresh(store, SAMPLE).version


def test_a_file_that_was_only_touched_is_sound(store, version):
    later = time.time() + 100
    for path in version.path.rglob("*"):
        os.utime(path, (later, later))
    assert version.verify() == ()
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError("refused")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(OSError, match="refused"):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("closed", ["direct", "."])
def test_a_folder_that_may_not_be_read_is_told_and_not_left_out(
    store, version, closed, monkeypatch
):
    refresh(store, SAMPLE, "dataset")
    opened = os.scandir

    def scandir(path):
        if Path(path) == store.root / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path)

    said = "may not be read: Permission denied; ask its owner"
    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", scandir)
        with pytest.raises(StoreError, match=said):
            store.names()


def test_a_dataset_whose_version_was_removed_says_so(store, tmp_path):
    held = refresh(store, SAMPLE).version.open()
    for content in range(3):
        refresh(ArtifactStore(store.root, keep_versions=1), SAMPLE.with_train({0: 9.0 + content}))
    with pytest.raises(StoreError, match="version 000001 was removed while it was open"):
        held.influences.load()


def test_on_a_coarse_clock_a_file_of_the_same_size_is_not_taken_for_the_one_before(
    store, monkeypatch
):
    """Some file systems tell times of modification in seconds."""

    def coarse(path):
        seen = stamp(path)
        return seen and (seen[0], 0)

    monkeypatch.setattr("influence_dag.files.stamp", coarse)
    refresh(store, SAMPLE)
    after = refresh(store, SAMPLE.with_train({3: -1.0})).version
    sizes = {(after.path.with_name(n) / "blocks.npz").stat().st_size for n in ("000001", "000002")}
    assert len(sizes) == 1
    assert after.verify(checksums=True) == ()
    after.open().load()


def test_an_exchange_is_noticed_in_the_versions_that_link_the_files_too(store, version):
    now = refresh(store, SAMPLE.with_train({19: 7.0})).version
    first, second = (now.path / f"influences/{name}" for name in ("c.0.0", "c.1.0"))
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)  # into the files that both versions share
    for each in (version, now):
        found = {damage.file for damage in each.verify(checksums=True)}
        assert found == {"influences/c.0.0", "influences/c.1.0"}
    sample = SAMPLE.with_train({19: 8.0})
    again = refresh(store, sample).version
    np.testing.assert_array_equal(again.read("influences"), sample.values)


def test_a_version_of_another_artifact_copied_into_its_place_is_told_and_made_again(store, version):
    other = refresh(store, SAMPLE.with_train({3: 5.0}), "cg/influences").version
    shutil.rmtree(version.path)
    shutil.copytree(other.path, version.path)
    store = ArtifactStore(store.root)
    copied = store.current(NAME)
    with pytest.raises(StoreError, match=f"{NAME}: .* is a version of cg/influences, copied into"):
        copied.open()
    assert [damage.file for damage in copied.verify()] == ["manifest.json"]
    again = refresh(store, SAMPLE).version
    np.testing.assert_array_equal(again.read("influences"), SAMPLE.values)
