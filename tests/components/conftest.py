import os
from pathlib import Path

import pytest
from project_copy import copy_project, environment


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files without results, somewhere else. Not to be changed."""
    return copy_project(tmp_path_factory.mktemp("copied") / "project")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of Dagster's commands, with an instance of its own."""
    return environment(os.environ, tmp_path_factory.mktemp("dagster-home"))
