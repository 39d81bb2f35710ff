from collections.abc import Iterator

import pytest
from dagster_server import Server, dagster_dev
from project_copy import copy_project


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a copy of the project, which has computed nothing yet."""
    folder = tmp_path_factory.mktemp("server")
    with dagster_dev(copy_project(folder / "project"), folder / "home") as running:
        yield running


@pytest.fixture(scope="session")
def finished_run(server: Server) -> str:
    """The run that materialised the digits study from the UI's side."""
    run = server.launch("digits_refresh")
    status = server.wait(run, seconds=240)
    assert status == "SUCCESS", [e for e in server.events(run) if "error" in e]
    return run
