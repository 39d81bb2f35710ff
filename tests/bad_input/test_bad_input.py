"""Every kind of bad input ends in its sentence: no traceback, no waiting, no other number."""

import pytest
from bad_input.kinds import meet, nothing
from bad_input.table import FILE, KINDS, PAGE, as_page, as_toml, is_said, sentences
from tiny_project import Project

SAID = sentences()
LONGEST = 3.0  # seconds of the processor


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What a first kind would wait for."""
    import dagster  # noqa: F401
    import pyarrow.feather  # noqa: F401
    import torch._dynamo  # noqa: F401
    import xarray  # noqa: F401
    import zarr  # noqa: F401
    from PIL import Image  # noqa: F401

    import influence_dag.components.console
    import influence_dag.query.drawn
    import influence_dag.stages.curvature
    import influence_dag.stages.dataset
    import influence_dag.stages.model  # noqa: F401


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("section", "kind"), KINDS, ids=[f"{section.title}: {kind.name}" for section, kind in KINDS]
)
def test_bad_input_is_told(section, kind, request, tmp_path):
    if section.finished:
        finished = request.getfixturevalue("finished_project")
        project = finished if kind.spoil is nothing else finished.copy(tmp_path)
    else:
        project = Project(tmp_path)
    met = meet(section, kind, project)
    assert is_said(SAID[section.title][kind.name], met.sentence), met.sentence
    assert met.cpu_seconds < LONGEST


def test_the_table_is_large_and_the_page_of_it_current():
    assert len(KINDS) >= 150
    assert len({(section.title, kind.name) for section, kind in KINDS}) == len(KINDS)
    assert PAGE.read_text() == as_page(SAID), "make bad-input"
    assert FILE.read_text() == as_toml(SAID), "make bad-input"
    named = {(title, name) for title, kinds in SAID.items() for name in kinds}
    assert named == {(section.title, kind.name) for section, kind in KINDS}
