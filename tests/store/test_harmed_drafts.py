"""What is lost or rots of a draft before it is published: files, and what is noted of them."""

import errno
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
from harm import rot_file
from stored_sample import NAME, Sample, refresh, refresh_with_results, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore, open_store
from influence_dag.store.testing.sample import HARM, with_another_bit

OLD = Sample()
NEW = replace(OLD, train=(*range(8), *range(50, 70)))


@pytest.mark.parametrize("lost", ["train/c.0", "total/c.0"])
def test_a_label_that_was_taken_away_is_never_published_as_none(tmp_path, lost):
    """Zarr would read it as fill values, `""` and NaN, without a word."""
    store = ArtifactStore(tmp_path)
    refresh(store, OLD)

    def write_and_lose():
        with store.new_version(NAME, NEW.layout) as draft:
            for index in draft.outdated(NEW.expected)["influences"]:
                write_chunk(draft, NEW, index)
            draft.set_result("total", ("test",), NEW.values.sum(axis=1))
            Path(draft.contents.address, lost).unlink()

    with pytest.raises(StoreError, match=re.escape(f"{lost} vanished before it was published")):
        write_and_lose()
    assert store.version(NAME).number == 1
    refresh_with_results(store, NEW)
    opened = store.version(NAME).open()
    assert opened["train"].values.tolist() == [f"r{i}" for i in range(28)]
    np.testing.assert_array_equal(opened["total"], NEW.values.sum(axis=1))


def test_labels_of_nothing_have_no_file_and_are_published(tmp_path):
    nobody = Sample(train=(), test=())
    version = refresh(ArtifactStore(tmp_path), nobody).version
    assert version is not None
    assert version.verify(checksums=True) == ()
    assert version.open().sizes == {"test": 0, "train": 0}


def begun(store) -> None:
    """A run that is interrupted when it has written three chunks and a result."""
    with suppress(KeyboardInterrupt), store.new_version(NAME, NEW.layout) as draft:
        for index in draft.outdated(NEW.expected)["influences"][:3]:
            write_chunk(draft, NEW, index)
        draft.set_result("total", ("test",), NEW.values.sum(axis=1))
        draft.set_attrs(answer=12345)
        raise KeyboardInterrupt


def test_a_journal_of_which_a_bit_is_another_vouches_for_no_more_than_it_can(tmp_path):
    """It ended every further run in a `KeyError`; another number was published as a result."""
    store = ArtifactStore(tmp_path / "store")
    refresh(store, OLD)
    begun(store)
    (journal,) = store.root.rglob("*.journal")
    content = journal.read_bytes()
    for bit in np.random.default_rng(0).permutation(8 * len(content))[:100].tolist():
        rotten = ArtifactStore(copytree(store.root, tmp_path / str(bit), symlinks=True))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (rotten.root / journal.relative_to(store.root)).write_bytes(flipped)
        assert rotten.unfinished().get(NAME, 0) <= 3
        version = refresh_with_results(rotten, NEW).version
        assert version is not None
        np.testing.assert_array_equal(version.read("influences"), NEW.values)
        np.testing.assert_array_equal(version.coordinate("total"), NEW.values.sum(axis=1))
        assert version.attrs.get("answer") in (12345, None)


@pytest.mark.parametrize("edit", HARM)
def test_a_journal_in_a_repository_that_is_another_vouches_for_nothing(tmp_path, edit):
    pytest.importorskip("icechunk")
    store = open_store(f"icechunk+file://{tmp_path}/studies/tiny")
    refresh(store, OLD)
    begun(store)
    objects = (tmp_path / "studies/tiny" / NAME / "versions/chunks").iterdir()
    journals = (path for path in objects if b'"entries"' in path.read_bytes())
    journal = max(journals, key=lambda path: path.stat().st_mtime_ns)  # also of the run before
    content = edit(journal.read_bytes())
    journal.unlink()
    if content is not None:
        journal.write_bytes(content)
    again = open_store(store.address)
    assert again.unfinished() == {}
    draft = refresh(again, NEW)
    assert (draft.resumed, draft.chunks_written) == (False, 9)
    np.testing.assert_array_equal(again.version(NAME).read("influences"), NEW.values)


def test_a_draft_is_resumed_on_the_version_that_it_began_with_and_on_no_other_of_its_number(
    tmp_path,
):
    store, other = ArtifactStore(tmp_path / "store"), ArtifactStore(tmp_path / "other")
    refresh(store, OLD)
    begun(store)
    theirs = refresh(other, OLD.with_train({19: 7.0})).version
    assert theirs is not None
    rmtree(store.version(NAME).path)
    copytree(theirs.address, store.root / NAME / "versions/000001")  # from a backup
    draft = refresh(ArtifactStore(store.root), NEW)
    assert (draft.resumed, draft.chunks_written) == (False, 9)


def test_where_files_are_copied_what_has_rotted_does_not_become_right_either(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr("os.link", refused)
    store = ArtifactStore(tmp_path)
    with store.new_version(NAME, OLD.layout) as draft:
        for index in draft.outdated(OLD.expected)["influences"]:
            write_chunk(draft, OLD, index)
        draft.add_file("weights", b"weights of the model")
    rot_file(store.version(NAME), "weights", with_another_bit)
    relabelled = replace(OLD, attrs={"units": "nats"})
    version = refresh(store, relabelled).version
    assert version is not None
    with pytest.raises(StoreError, match="weights is damaged"):
        version.file("weights")
    rot_file(version, "test/zarr.json", lambda content: content.replace(b'"test"', b'"tesT"'))
    with pytest.raises(StoreError, match="damaged before it was published"):
        refresh(store, NEW)
    mended = refresh(ArtifactStore(tmp_path), NEW).version
    assert mended is not None
    assert mended.open()["test"].dims == ("test",)
    assert mended.verify(checksums=True) == ()


@pytest.mark.parametrize("file", ["influences/zarr.json", "train/zarr.json", "train/c.0"])
@pytest.mark.parametrize("edit", HARM)
def test_what_rots_of_a_draft_until_it_is_resumed_is_written_again(tmp_path, file, edit):
    """Names and labels, of which no journal tells: some were published as they were then."""
    store = ArtifactStore(tmp_path)
    refresh(store, OLD)
    begun(store)
    (left,) = tmp_path.glob(f"{NAME}/versions/.partial-*/{file}")
    content = edit(left.read_bytes())
    left.unlink()
    if content is not None:
        left.write_bytes(content)
    draft = refresh(ArtifactStore(tmp_path), NEW)
    assert (draft.resumed, draft.chunks_written) == (True, 6)
    opened = store.version(NAME).open()
    np.testing.assert_array_equal(opened.influences, NEW.values)
    assert opened.influences.attrs == {"long_name": "influence"}
    assert opened["train"].values.tolist() == [f"r{i}" for i in range(28)]
    assert store.version(NAME).verify(checksums=True) == ()


def test_a_draft_goes_on_though_a_file_that_it_has_taken_over_is_gone_from_where_it_was(tmp_path):
    """Each run ended in the same error until somebody removed what was unfinished."""
    store = ArtifactStore(tmp_path)
    with store.new_version(NAME, OLD.layout) as draft:
        for index in draft.outdated(OLD.expected)["influences"]:
            write_chunk(draft, OLD, index)
        draft.add_file("weights", b"weights of the model")
    relabelled = replace(OLD, attrs={"units": "nats"})
    with suppress(KeyboardInterrupt), store.new_version(NAME, relabelled.layout):
        raise KeyboardInterrupt
    (store.version(NAME).path / "weights").unlink()
    version = refresh(ArtifactStore(tmp_path), relabelled).version
    assert version is not None
    assert (version.number, version.file("weights")) == (2, b"weights of the model")
