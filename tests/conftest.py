"""Settings of every test: repeatable random numbers, no clock in hypothesis, no user's Dagster."""

import gc
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import databases
import pytest
import shapes  # noqa: F401  (before what it is to check)
from buckets import served
from hypothesis import settings
from tiny_project import Project

from influence_dag.errors import StudyError

gc.disable()  # while tests are collected; most of what is made then stays
settings.register_profile("influence_dag", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("influence_dag")

MEMORY = Path("/dev/shm")
ENOUGH = 6 << 30  # bytes; what passed leaves nothing behind

# Stores are written in memory where there is enough: a fifth of a refresh is waiting for a disk.
if (
    "TMPDIR" not in os.environ
    and os.access(MEMORY, os.W_OK)
    and shutil.disk_usage(MEMORY).free >= ENOUGH
):
    tempfile.tempdir = os.environ["TMPDIR"] = str(MEMORY)

# Tests neither read nor write the user's instance: what runs here is forgotten.
os.environ.pop("DAGSTER_HOME", None)
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


def pytest_collection_finish() -> None:
    """What was imported stays: collecting garbage does not look through it, now or again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
    gc.enable()


# A short cut whose answer its check refused is made up for by the slow way, with a warning: a test
# of the short cut would pass by that. Which test expects it says so with `pytest.warns`.
SHORT_CUTS = (
    *("curvature", "adversary", "test_fast_paths.py", "test_functional.py", "test_gradients.py"),
    *("test_influence.py", "test_local_gradients.py", "test_model_zoo.py", "test_transformers.py"),
)
SLOW_WAYS = (
    ".* is not for all rows what it is for the first",
    ".* is no chain of Linear and elementwise layers for all",
    "the gradients of .* are not sums of products of what one call",
)


# Minutes of few tests, and of waiting for other processes, which the files after them fill.
LONGEST = ("test_dagster_dev.py", "test_tutorials.py", "test_faults.py", "test_transformers.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    marks = [pytest.mark.filterwarnings(f"error:{said}:RuntimeWarning") for said in SLOW_WAYS]
    for item in items:
        if {item.path.name, item.path.parent.name} & {*SHORT_CUTS}:
            for mark in marks:
                item.add_marker(mark, append=False)


def _skip_without_torch() -> Any:
    """Where torch is not installed, what asks for it is skipped."""
    try:
        return (yield)
    except (ModuleNotFoundError, StudyError) as error:
        missing = error.__cause__ if isinstance(error, StudyError) else error  # by a study's code
        if not (isinstance(missing, ModuleNotFoundError) and missing.name == "torch"):
            raise
        pytest.skip(str(error))


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_skip_without_torch)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_skip_without_torch)


@pytest.fixture(autouse=True)
def _as_if_alone() -> Iterator[None]:
    """Random numbers are those of any test; what earlier ones did is not seen or paid for again."""
    databases.prepare()
    with suppress(ModuleNotFoundError):  # stores, tables and settings are tested without it too
        import torch

        # For devices that are not there `torch.manual_seed` notes the stack of every caller.
        cuda = torch.cuda.is_available()
        (torch if cuda else torch.default_generator).manual_seed(0)
    before = sys.path.copy()  # every import searches it, and projects of other tests are not on it
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def _bucket() -> Iterator[dict[str, str]]:
    with served() as said:
        yield said


@pytest.fixture
def bucket(_bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket on loopback, which clients find by their environment."""
    for name, value in _bucket.items():
        monkeypatch.setenv(name, value)
    return "s3://studies"


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with everything materialised. Not to be changed: copy it.

    `FINISHED_PROJECT` names one that another environment has made (see `.ci/newest.py`).
    """
    if made := os.environ.get("FINISHED_PROJECT"):
        return pickle.loads((Path(made) / "project.pickle").read_bytes())
    project = Project(tmp_path_factory.mktemp("finished"))
    project.refresh()
    return project


@pytest.fixture
def project(finished_project: Project, tmp_path: Path) -> Project:
    """A copy of it, to be edited."""
    return finished_project.copy(tmp_path)
