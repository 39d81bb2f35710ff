"""One server and one study for all that is asked of the explorer."""

import http.client
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from tiny_project import Project

if TYPE_CHECKING:
    from influence_dag.explorer.serving import Serving


class Client:
    """Asks as the page does, or as somebody else would."""

    def __init__(self, serving: "Serving"):
        self.port = serving.port
        self.ours = {"Host": f"127.0.0.1:{self.port}"}

    def raw(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return found

    def get(self, path: str, **query: Any) -> Any:
        status, body, _ = self.raw("GET", f"/api/{path}?{urlencode(query)}", self.ours)
        return json.loads(body) | {"status": status}

    def post(self, path: str, body: Any, **query: Any) -> Any:
        origin = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        content = json.dumps(body).encode()
        where = f"/api/{path}?{urlencode(query)}"
        status, answer, _ = self.raw("POST", where, self.ours | origin, content)
        return json.loads(answer) | {"status": status}


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
