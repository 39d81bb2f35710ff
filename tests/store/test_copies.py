"""A store that was copied: with its links, without them, with other things beside them."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored_sample import NAME, Sample, chunk_files, refresh, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore

SAMPLE = Sample()
NEWER = SAMPLE.with_train({0: 5.0})


@pytest.fixture
def twice(store) -> ArtifactStore:
    """A store with two versions of its artifact."""
    refresh(store, SAMPLE)
    refresh(store, NEWER)
    return store


def links_followed(root: Path) -> None:
    """As `cp -rL`, an object store or a share leaves it: times of modification are new."""
    shutil.copytree(root, root.with_name("copy"), symlinks=False, copy_function=shutil.copyfile)
    shutil.rmtree(root)
    root.with_name("copy").rename(root)


def link_left_out(root: Path) -> None:
    (root / NAME / "current").unlink()


def link_as_text(root: Path) -> None:
    """As git and some archives write it where links are not supported."""
    link_left_out(root)
    (root / NAME / "current").write_text("versions/000002")


def read(store: ArtifactStore) -> np.ndarray:
    return store.version(NAME).open().influences.values


COPIES = pytest.mark.parametrize("copy", [links_followed, link_as_text])


@COPIES
def test_a_copy_that_lost_nothing_is_read_without_a_word(twice, copy, recwarn):
    copy(twice.root)
    again = ArtifactStore(twice.root)
    assert again.names() == [NAME]
    np.testing.assert_array_equal(read(again), NEWER.values)
    assert again.version(NAME).number == 2
    assert again.version(NAME).verify(checksums=True) == ()
    assert not recwarn


def test_a_copy_of_an_older_version_called_current_is_that_one(twice):
    current = twice.root / NAME / "current"
    current.unlink()
    shutil.copytree(twice.root / NAME / "versions/000001", current)
    np.testing.assert_array_equal(read(ArtifactStore(twice.root)), SAMPLE.values)


@pytest.mark.parametrize("lose", [link_left_out, lambda root: dangling(root)])
def test_without_the_link_the_newest_version_is_taken_and_it_is_said(twice, lose):
    lose(twice.root)
    with pytest.warns(UserWarning, match=r"the link .*current.*missing: 000002, the newest"):
        np.testing.assert_array_equal(read(ArtifactStore(twice.root)), NEWER.values)


def dangling(root: Path) -> None:
    link_left_out(root)
    (root / NAME / "current").symlink_to("versions/000009")


@pytest.mark.filterwarnings("ignore:the link")
@pytest.mark.parametrize("lost", ["influences/c.1.1", "train/c.0", "manifest.json", "blocks.npz"])
def test_a_version_that_was_copied_in_part_is_not_taken_for_complete(twice, lost):
    link_left_out(twice.root)
    (twice.root / NAME / "versions/000002" / lost).unlink()
    np.testing.assert_array_equal(read(ArtifactStore(twice.root)), SAMPLE.values)


def test_without_any_complete_version_the_error_names_the_link(store):
    refresh(store, SAMPLE)
    link_left_out(store.root)
    (store.root / NAME / "versions/000001/zarr.json").unlink()
    with pytest.raises(StoreError, match=r"the link .*current is missing, and none of.*000001.*-a"):
        ArtifactStore(store.root).current(NAME)


def test_a_folder_without_its_versions_is_an_error_that_says_so(twice):
    links_followed(twice.root)
    shutil.rmtree(twice.root / NAME / "versions")
    (twice.root / NAME / "versions").mkdir()
    with pytest.raises(StoreError, match=r"current is a folder and not a link.*versions"):
        ArtifactStore(twice.root).current(NAME)


@pytest.mark.filterwarnings("ignore:the link")
@pytest.mark.parametrize("copy", [links_followed, link_left_out, dangling])
@pytest.mark.parametrize("edit", [False, True])
def test_a_refresh_restores_the_link(twice, copy, edit):
    copy(twice.root)
    store = ArtifactStore(twice.root)
    wanted = SAMPLE.with_train({3: 7.0}) if edit else NEWER
    if edit:
        assert len(refresh(store, wanted).outdated(wanted.expected)["influences"]) == 0
    else:
        store.restore_pointer(NAME)
    link = twice.root / NAME / "current"
    assert os.readlink(link) == f"versions/00000{3 if edit else 2}"
    np.testing.assert_array_equal(read(store), wanted.values)


def test_chunks_of_a_copy_are_reused(twice):
    links_followed(twice.root)
    before = chunk_files(twice)
    draft = refresh(ArtifactStore(twice.root), NEWER.with_train({3: 7.0}))
    assert draft.chunks_written == 3
    after = chunk_files(twice)
    assert sum(after[name] == before[name] for name in after) == len(before) - 3


def test_where_links_are_refused_a_text_file_names_the_version(store, monkeypatch):
    def refused(self: Path, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refused)
    for sample in (SAMPLE, NEWER):
        refresh(store, sample)
        np.testing.assert_array_equal(read(ArtifactStore(store.root)), sample.values)
    assert (store.root / NAME / "current").read_text() == "versions/000002"


OTHERS: dict[str, Callable[[Path], Path]] = {
    "snapshots": lambda root: root / ".snapshot/hourly.0",
    "a server's": lambda root: root / "@eaDir",
    "a copy": lambda root: root / "Copy of direct",
    "a copy of versions": lambda root: root / NAME / "versions (copy)",
    "beside versions": lambda root: root / NAME / "versions" / "000002 (copy)",
    "hidden beside versions": lambda root: root / NAME / "versions" / "@eaDir",
}


@pytest.mark.parametrize("place", OTHERS.values(), ids=OTHERS)
def test_what_lies_beside_is_passed_over(twice, place, tmp_path):
    shutil.copytree(twice.root / NAME, tmp_path / "copy", symlinks=True)
    other = place(twice.root)
    shutil.copytree(tmp_path / "copy", other / NAME, symlinks=True)
    store = ArtifactStore(twice.root)
    assert store.names() == [NAME]
    assert [version.number for version in store.versions(NAME)] == [1, 2]
    assert store.unfinished() == {}
    draft = refresh(store, NEWER.with_train({3: 7.0}))
    assert draft.version.number == 3
    assert (other / NAME).is_dir()


@pytest.mark.parametrize("name", ["train/@eaDir/c.0@SynoEAStream", "@eaDir/zarr.json"])
def test_what_lies_inside_a_version_is_not_carried_into_the_next(twice, name):
    stray = twice.version(NAME).path / name
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"another's")
    store = ArtifactStore(twice.root)
    draft = refresh(store, NEWER.with_train({3: 7.0}))
    assert not (draft.version.path / name).exists()
    assert draft.version.verify(checksums=True) == ()


def test_a_version_whose_link_a_kill_left_out_is_taken(store):
    """Publishing ends with the link; the version is complete before."""
    with store.new_version(NAME, SAMPLE.layout) as draft:
        for index in draft.outdated(SAMPLE.expected)["influences"]:
            write_chunk(draft, SAMPLE, index)
    link_left_out(store.root)
    with pytest.warns(UserWarning, match="000001, the newest complete version"):
        assert ArtifactStore(store.root).version(NAME).number == 1


def test_a_link_of_another_program_is_no_artifact(store):
    refresh(store, SAMPLE)
    (store.root / "node" / "versions" / "1.22.4").mkdir(parents=True)
    (store.root / "node" / "current").symlink_to("versions/1.22.4")
    assert store.names() == [NAME]
    assert store.current("node") is None


def test_an_artifact_on_another_disk_is_there_by_a_link_and_an_alias_is_none(tmp_path):
    store = ArtifactStore(tmp_path / "studies" / "tiny")
    refresh(store, Sample())
    refresh(store, Sample(), "dataset")
    (store.root / "direct").rename(tmp_path / "large")
    (store.root / "direct").symlink_to(tmp_path / "large")
    (store.root / "alias").symlink_to("dataset")
    (store.root / "around").symlink_to("..")
    assert store.names() == ["dataset", NAME]
    refresh(store, Sample().with_train({0: 50.0}))
    assert [version.number for version in store.versions(NAME)] == [1, 2]
    assert store.gc() == []
