"""What Dagster's UI shows of an artifact is of rows that are there."""

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.query import drawn, plots


@pytest.fixture
def shortened(finished_project: Project, tmp_path) -> Project:
    """The first chunk of training rows and the first test row are holes."""
    project = finished_project.copy(tmp_path)
    project.write("train", project.rows["train"][8:])
    project.write("test", project.rows["test"][1:])
    project.refresh()
    return project


def test_pictures_begin_at_the_first_row_that_is_there(shortened, monkeypatch):
    shown = []
    for name in ("histogram", "feature_bars"):
        plot = getattr(plots, name)

        def kept(*given, plot=plot, **named):
            shown.append((given, named["title"]))
            return plot(*given, **named)

        monkeypatch.setattr(plots, name, kept)
    monkeypatch.setattr(drawn, "SAMPLE", 1)  # influences: one row's
    bench, store = shortened.bench(), shortened.results.store
    drawn.influences(bench, store.version("direct/influences"), "direct")
    drawn.perturbation(bench, store.version("direct/perturbation_influences"), "direct")
    ((values,), _), ((_, bars), title) = shown
    row = shortened.results.influences("test-01", method="direct").values
    np.testing.assert_array_equal(np.sort(values), np.sort(row))
    assert np.isfinite(bars).all()
    assert title.removesuffix(" → test-01") in {str(row[0]) for row in shortened.rows["train"]}
