"""Labels and results of a draft that are gone before it is published: Zarr would read them as fill
values, `""` and NaN, without a word.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from stored_sample import NAME, Sample, refresh, refresh_with_results, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore

OLD = Sample()
NEW = replace(OLD, train=(*range(8), *range(50, 70)))


@pytest.mark.parametrize("lost", ["train/c.0", "total/c.0"])
def test_a_label_that_was_taken_away_is_never_published_as_none(tmp_path, lost):
    store = ArtifactStore(tmp_path)
    refresh(store, OLD)

    def write_and_lose():
        with store.new_version(NAME, NEW.layout) as draft:
            for index in draft.outdated(NEW.expected)["influences"]:
                write_chunk(draft, NEW, index)
            draft.set_result("total", ("test",), NEW.values.sum(axis=1))
            (draft.contents.path / lost).unlink()

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
