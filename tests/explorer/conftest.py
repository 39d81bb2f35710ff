"""One server and one study for all that is asked of the explorer."""

from collections.abc import Iterator

import pytest
from asking import Client
from tiny_project import Project


@pytest.fixture(scope="session")
def looked_at(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished project, beside whose store marks are kept."""
    return finished_project.copy(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="session")
def client(looked_at: Project) -> Iterator[Client]:
    pytest.importorskip("uvicorn")
    serving = looked_at.results.explore()
    yield Client(serving)
    serving.stop()
