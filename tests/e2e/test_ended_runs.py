"""Runs of Dagster's server that are killed or cancelled: what the server makes of it."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from dagster_server import Server, dagster_dev
from project_copy import copy_project

from influence_dag.query.results import open_study

pytestmark = [pytest.mark.e2e, pytest.mark.campaign]

MESSAGES = """
query Messages($run: ID!) {
  logsForRun(runId: $run, limit: 1000) {
    ... on EventConnection { events { ... on MessageEvent { message } } }
  }
}
"""
STARTED = 'Started execution of step "digits__{}"'
RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"
TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""
AGAIN = """
mutation Again($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With the study `diabetes`, whose model takes its time."""
    project = copy_project(tmp_path_factory.mktemp("ended") / "project")
    with dagster_dev(project, project.parent / "home") as running:
        yield running


def messages(server: Server, run: str) -> str:
    events = server.ask(MESSAGES, run=run)["logsForRun"]["events"]
    return "\n".join(event.get("message", "") for event in events)


def process_of(server: Server, run: str, *, when: str, seconds: float = 120) -> int:
    """The process that executes a run, when the run has come to a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = messages(server, run)
        if STARTED.format(when) in said:
            return int(re.findall(r"Executing steps in process \(pid: (\d+)\)", said)[0])
        time.sleep(0.1)
    raise TimeoutError(said)


def other_run(server: Server, known: set[str], *, seconds: float = 120) -> str:
    """A run that has come up by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = server.ask(RUNS)["runsOrError"]["results"]
        if found := [run["runId"] for run in runs if run["runId"] not in known]:
            return found[0]
        time.sleep(0.5)
    raise TimeoutError(f"no run beside {known}")


def edit_a_row(project: Path) -> None:
    path = project / "data/digits/train.csv"
    lines = path.read_text().splitlines()
    lines[5] = lines[5].replace(",16", ",15", 1)
    path.write_text("\n".join(lines) + "\n")


def test_a_killed_run_is_started_again_by_itself_and_ends_well(server):
    run = server.launch("digits_refresh")
    os.kill(process_of(server, run, when="hessian"), signal.SIGKILL)
    assert server.wait(run, seconds=120) == "FAILURE"
    again = other_run(server, {run})
    assert server.wait(again, seconds=400) == "SUCCESS"
    assert STARTED.format("model") not in messages(server, again), "it had succeeded"


def test_a_cancelled_run_is_executed_again_from_where_it_was(server):
    edit_a_row(server.project)
    run = server.launch("digits_refresh")
    process_of(server, run, when="direct__perturbation_influences", seconds=400)
    answer = server.ask(TERMINATE, run=run)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess"
    assert server.wait(run, seconds=120) == "CANCELED"
    params = {"parentRunId": run, "strategy": "FROM_FAILURE"}
    answer = server.ask(AGAIN, params=params)["launchRunReexecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    again = answer["run"]["runId"]
    assert server.wait(again, seconds=400) == "SUCCESS"
    said = messages(server, again)
    assert STARTED.format("model") not in said
    assert STARTED.format("direct__perturbation_influences") in said
    study = open_study(server.project / "data/store/digits")
    assert np.isfinite(study["direct"].influences).all()
    assert not study.store.unfinished()
