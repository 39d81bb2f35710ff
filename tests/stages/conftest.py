import pytest
from tiny_project import Project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory) -> Project:
    """A project whose stages have all run once. Not to be changed: copy it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.refresh()
    return project


@pytest.fixture
def project(finished_project, tmp_path) -> Project:
    """A copy of it, to be edited."""
    return finished_project.copy(tmp_path)
