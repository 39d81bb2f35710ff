"""A `dagster dev` on a free loopback port, with an instance of its own, spoken to in GraphQL."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
from project_copy import environment

_direct = build_opener(ProxyHandler({}))  # loopback never goes through a proxy

ROWS = {"train": 400, "test": 80}  # of the digits, where it is not their number that is tested

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
STALE = "{ assetNodes { assetKey { path } staleStatus staleCauses { reason } } }"
STATUS = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
RUNS = "{ runsOrError(limit: 1) { ... on Runs { results { runId } } } }"
EVENTS = """
query Events($run: ID!) {
  logsForRun(runId: $run, limit: 1000) {
    ... on EventConnection {
      events {
        __typename
        ... on MaterializationEvent { assetKey { path } metadataEntries { label __typename } }
        ... on ObservationEvent {
          assetKey { path } metadataEntries { label ... on IntMetadataEntry { intValue } }
        }
        ... on AssetCheckEvaluationEvent {
          evaluation { checkName success assetKey { path } }
        }
        ... on ErrorEvent { error { message } }
      }
    }
  }
}
"""


@dataclass(frozen=True)
class Server:
    """A running server on a copy of the project."""

    project: Path
    url: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer to a GraphQL query or mutation."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(f"{self.url}/graphql", body, headers)
        answer = json.load(_direct.open(request, timeout=30))
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def launch(self, job: str) -> str:
        """Start a job; returns the id of its run."""
        return self._launch(jobName=job)

    def observe(self, *path: str) -> str:
        """Look at a source, as the UI's button does; returns the id of the run."""
        return self._launch(jobName="__ASSET_JOB", assetSelection=[{"path": list(path)}])

    def _launch(self, **selector: Any) -> str:
        where = {"repositoryLocationName": "influence_dag", "repositoryName": "__repository__"}
        params = {"selector": {**where, **selector}, "runConfigData": {}}
        answer = self.ask(LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def stale(self, group: str) -> dict[str, list[str]]:
        """The assets of a group that are not fresh, each with the reasons that the UI shows."""
        nodes = self.ask(STALE)["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"][1:]): [c["reason"] for c in node["staleCauses"]]
            for node in nodes
            if node["assetKey"]["path"][0] == group and node["staleStatus"] not in ("FRESH", None)
        }

    def newest_run(self, *, seconds: float) -> str:
        """The run that somebody has just started, once it is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if runs := self.ask(RUNS)["runsOrError"]["results"]:
                return runs[0]["runId"]
            time.sleep(0.2)
        raise TimeoutError(f"no run after {seconds:g} s")

    def wait(self, run: str, *, seconds: float) -> str:
        """How the run ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.ask(STATUS, run=run)["runOrError"]["status"]
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.3)
        raise TimeoutError(f"run {run} is {status} after {seconds:g} s")

    def events(self, run: str) -> list[dict[str, Any]]:
        return self.ask(EVENTS, run=run)["logsForRun"]["events"]


@contextmanager
def dagster_dev(project: Path, home: Path) -> Iterator[Server]:
    """The server, ready to answer; at the end all of its processes are gone."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = ["dagster", "dev", "--host", "127.0.0.1", "--port", str(port)]
    there = environment(os.environ, home)
    place = f"working_directory: {project}"
    workspace = (project / "workspace.yaml").read_text().replace("working_directory: .", place)
    (home / "workspace.yaml").write_text(workspace)
    with (home.parent / "dagster-dev.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=home,  # as `make ui`
            env=there,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hears_interrupts,
        )
    server = Server(project, f"http://127.0.0.1:{port}")
    try:
        _wait_until_it_answers(server, process, Path(log.name))
        yield server
    finally:
        _stop(process)


def hears_interrupts() -> None:
    """Also where the tests run in the background of a shell, which has interrupts ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_until_it_answers(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if server.ask(
                "{ repositoriesOrError { ... on RepositoryConnection { nodes { id } } } }"
            ):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise TimeoutError(log.read_text())


def _stop(process: subprocess.Popen) -> None:
    """As Ctrl-C in a terminal does; what is still there after a while is killed and an error."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
        _, left = psutil.wait_procs(family, timeout=15)
        assert not left, f"still running: {left}"
    finally:
        for member in family:
            if member.is_running():
                member.kill()
