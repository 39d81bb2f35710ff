"""Who may ask: the page itself, under the name that the server was started with, and nobody else.

A page of any web site can send requests to 127.0.0.1, and can have its own name resolve to that
address (DNS rebinding). The first is told by `Origin`, the second by `Host`.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # Nothing inline, nothing from elsewhere, nothing sent elsewhere, not within another page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MOST = 2**20  # bytes of a request's body


class Guard:
    """Refuses requests under other names and writes of other pages; says what a page may do."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if why := self._refused(scope):
            await PlainTextResponse(why, 403, HEADERS)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, guarded)

    def _refused(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if headers.getlist("host") != [headers.get("host")] or not self._is_ours(headers["host"]):
            return "this server answers under the name that it was started with, and no other"
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin = urlsplit(headers.get("origin", ""))
        if origin.scheme != "http" or origin.netloc != headers["host"]:
            return "only the page itself may write"
        if headers.get("content-type", "").partition(";")[0] != "application/json":
            return "only JSON is taken"
        length = headers.get("content-length", "")
        return None if length.isdigit() and int(length) <= MOST else "the request is too large"

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return name.lower() in self.hosts
