"""A study's store that was copied: it opens, and the next refresh puts back what is missing."""

import os
import shutil

import numpy as np
import pytest

from influence_dag.query.results import open_study


@pytest.mark.filterwarnings("ignore:the link")
@pytest.mark.parametrize("links", ["followed", "left out"])
def test_a_copied_store_opens_and_a_refresh_computes_nothing_and_restores_the_links(
    project, tmp_path, links
):
    wanted = project.results["direct"].influences.values
    copy = tmp_path / "copy"
    shutil.copytree(project.store, copy, symlinks=links == "left out")
    if links == "left out":
        for link in copy.rglob("current"):
            link.unlink()
    np.testing.assert_array_equal(open_study(copy)["direct"].influences.values, wanted)

    project.remove_store()
    copy.rename(project.store)
    assert all(update.is_current for update in project.refresh().values())
    for artifact in project.results.artifacts:
        assert os.readlink(project.store / artifact / "current").startswith("versions/00000")
