import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, chromium
from dagster_server import ROWS, Server, dagster_dev
from project_copy import copy_project
from tiny_project import Project

from influence_dag.running import materialize

GRAPH = "locations/__repository__@influence_dag/asset-groups/digits"

VALIDATED = {
    "methods": {"cg": None},
    "perturbation": None,
    "validation": {
        "leave_one_out": {"rows": 4},
        "datamodels": {"count": 4},
        "label_errors": {"share": 0.2, "folds": 0},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a copy of the project with fewer rows, which has computed nothing yet.

    It ends with the module: its processes are never idle.
    """
    folder = tmp_path_factory.mktemp("server")
    project = with_fewer_rows(copy_project(folder / "project"))
    Project(project, **VALIDATED)  # a study beside, of which refits are asked
    with dagster_dev(project, folder / "home") as running:
        yield running


def with_fewer_rows(project: Path) -> Path:
    for split, count in ROWS.items():
        file = project / f"data/digits/{split}.csv"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: 1 + count]))
    return project


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def materialize_all(page: Page, server: Server) -> str:
    """As a person does: open the graph of the study and click; returns the id of the run."""
    page.open(f"{server.url}/{GRAPH}", showing="Materialize all")
    page.click_what_begins_with("Materialize all")
    run = server.newest_run(seconds=60)
    page.leave()
    return run


@pytest.fixture(scope="module")
def finished_run(server: Server, request: pytest.FixtureRequest) -> str:
    """The run that materialised the digits study: by a click, or where no browser is by the API."""
    if shutil.which("chromium"):
        run = materialize_all(request.getfixturevalue("page"), server)
    else:
        run = server.launch("digits_refresh")
    status = server.wait(run, seconds=240)
    assert status == "SUCCESS", [e for e in server.events(run) if "error" in e]
    return run


@pytest.fixture(scope="module")
def validated(server: Server, finished_run: str) -> None:
    """The study `tiny` materialised by hand, into the history that the server shows."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_HOME", str(server.project.parent / "home"))
        materialize(server.project / "assets/tiny", progress=False)
