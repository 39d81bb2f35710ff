"""Settings of every test: repeatable random numbers, no clock in hypothesis, no user's Dagster."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_project import Project

settings.register_profile("influence_dag", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("influence_dag")

# Tests neither read nor write the user's instance: what runs here is forgotten.
os.environ.pop("DAGSTER_HOME", None)
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _python_path() -> Iterator[None]:
    """Projects of earlier tests are not on Python's path, which every import searches."""
    before = sys.path.copy()
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with everything materialised. Not to be changed: copy it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.materialize()
    return project


@pytest.fixture
def project(finished_project: Project, tmp_path: Path) -> Project:
    """A copy of it, to be edited."""
    return finished_project.copy(tmp_path)
