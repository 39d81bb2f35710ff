"""Asks the explorer's server as the page does, or as somebody else would."""

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

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
