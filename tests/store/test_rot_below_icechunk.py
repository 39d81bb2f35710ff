"""Objects of a repository are gone or others: what they held is made again, or it is told how."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from stored_sample import NAME, Sample, refresh, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import open_store
from influence_dag.store.testing.sample import emptied, removed, truncated

pytest.importorskip("icechunk")
OLD = Sample()
NEW = OLD.with_train({3: 99.0})


@pytest.fixture
def interrupted(tmp_path):
    """Two versions, and the beginning of a third."""
    store = open_store(f"icechunk+file://{tmp_path}/studies/tiny")
    refresh(store, OLD)
    refresh(store, OLD.with_train({4: 1.0}))
    with suppress(KeyboardInterrupt), store.new_version(NAME, NEW.layout) as draft:
        write_chunk(draft, NEW, draft.outdated(NEW.expected)["influences"][0])
        raise KeyboardInterrupt
    return tmp_path / "studies"


def harmed(path: Path, edit) -> None:
    content = edit(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


HARM = (truncated, emptied, removed)
REST = [pytest.param(first, marks=pytest.mark.campaign) for first in range(1, len(HARM))]


@pytest.mark.parametrize("first", [0, *REST])
def test_a_manifest_that_is_lost_costs_what_it_named_or_the_cure_is_told(
    interrupted, tmp_path, first
):
    """Each run ended in the same error, and in advice about credentials."""
    below, went_on = Path("tiny", NAME, "versions/manifests"), 0
    for number, manifest in enumerate(sorted((interrupted / below).iterdir())):
        copied = shutil.copytree(interrupted, tmp_path / str(number), symlinks=True)
        harmed(copied / below / manifest.name, HARM[(first + number) % len(HARM)])
        store = open_store(f"icechunk+file://{copied}/tiny")
        with suppress(StoreError):  # of what was taken over some may be found first by a reader
            refresh(store, NEW).version.open().load()
        said = ""
        try:
            refresh(open_store(store.address), NEW)
            went_on += 1
        except StoreError as error:
            said = str(error)
            shutil.rmtree(copied / below.parent)
        assert not said or said.endswith("is damaged: remove what is there, and refresh")
        version = refresh(open_store(store.address), NEW).version
        np.testing.assert_array_equal(version.read("influences"), NEW.values)
        assert version.open()["train"].values.tolist() == [f"r{i}" for i in range(20)]
        assert version.verify(checksums=True) == ()
    assert went_on > number / 2


@pytest.mark.parametrize(
    ("ref", "edit"), [("tag.000002", emptied), ("branch.main", emptied), ("branch.main", removed)]
)
def test_a_name_that_is_lost_is_told_with_what_to_remove(interrupted, ref, edit):
    harmed(interrupted / "tiny" / NAME / f"versions/refs/{ref}/ref.json", edit)
    store = open_store(f"icechunk+file://{interrupted}/tiny")
    with pytest.raises(StoreError, match=f"tiny/{NAME}.*remove what is .*and refresh"):
        refresh(store, NEW)
    shutil.rmtree(interrupted / "tiny" / NAME / "versions")
    version = refresh(open_store(store.address), NEW).version
    np.testing.assert_array_equal(version.read("influences"), NEW.values)
