"""The explorer's server: on the loopback interface, in this process, as long as it is wanted."""

import socket
import sys
import threading
import time
import webbrowser
from html import escape
from typing import Any

import click

from influence_dag.errors import InfluenceDagError
from influence_dag.explorer.opened import Results

LOOPBACK = "127.0.0.1"
LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})
SECONDS = 20  # until a server that starts has to listen


class ExplorerError(InfluenceDagError):
    """The explorer cannot be served as it was asked for."""


class Serving:
    """A server in a thread of its own: `.url` is where, `.stop()` ends it."""

    def __init__(self, results: Results, *, host: str = LOOPBACK, port: int = 0):
        uvicorn, app_of = _libraries()
        self._socket = _listening(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        named = LOCAL | {host.lower(), *_names(host)} if is_exposed(host) else LOCAL
        config = uvicorn.Config(
            app_of(results, named), log_level="warning", access_log=False, ws="none",
            server_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        run = self._server.run
        self._thread = threading.Thread(target=lambda: run([self._socket]), daemon=True)
        self.name = results.store.name

    @property
    def url(self) -> str:
        shown = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/"

    def start(self) -> "Serving":
        """Listen; returns once it answers."""
        self._thread.start()
        deadline = time.monotonic() + SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ExplorerError(f"the explorer did not start at {self.url}")
            time.sleep(0.01)
        return self

    def wait(self) -> None:
        """Serve until it is stopped, or interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """End it; the page then says that nobody answers."""
        self._server.should_exit = True
        self._thread.join(SECONDS)
        self._socket.close()

    def __repr__(self) -> str:
        return f"<explorer of {self.name!r} at {self.url}>"

    def _repr_html_(self) -> str:
        address = escape(self.url, quote=True)
        link = f'<a href="{address}" target="_blank" rel="noopener">{address}</a>'
        return f"<p>Explorer of <b>{escape(self.name)}</b>: {link}</p>"


def serve(
    results: Results, *, host: str = LOOPBACK, port: int = 0, open_browser: bool = False
) -> Serving:
    """Serve the page of a study from a thread of this process; port 0 is any that is free."""
    served = Serving(results, host=host, port=port).start()
    if open_browser:
        webbrowser.open(served.url)
    return served


def run(
    results: Results, *, host: str = LOOPBACK, port: int = 0, open_browser: bool | None = None
) -> None:
    """The command: serve in the foreground, say where, end without a traceback when stopped.

    A browser is opened where somebody is there to see it: with a terminal, unless said otherwise.
    """
    if is_exposed(host):
        click.echo(
            f"warning: {host} is no loopback address: whoever reaches this machine can read this "
            "study and mark its rows; there are no passwords (docs/security.md)",
            err=True,
        )
    asked = sys.stdout.isatty() if open_browser is None else open_browser
    served = serve(results, host=host, port=port, open_browser=asked)
    click.echo(f"{served.name} is open at {served.url} (stop: Ctrl-C)")
    try:
        served.wait()
    except KeyboardInterrupt:
        click.echo("stopped")
    finally:
        served.stop()


def is_exposed(host: str) -> bool:
    """Whether other machines reach a server that listens there."""
    return host not in ("127.0.0.1", "localhost", "::1")


def _names(host: str) -> set[str]:
    """The names under which a server on every address is asked for: those of this machine."""
    if host not in ("0.0.0.0", "::"):
        return {f"[{host.lower()}]"} if ":" in host else set()
    name = socket.gethostname().lower()
    try:
        known = socket.gethostbyname_ex(name)
    except OSError:
        return {name}
    return {name, known[0].lower(), *map(str.lower, known[1]), *known[2]}


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ExplorerError(
            f"nothing can listen at {host}:{port}: {error}; another --port, or 0 for any free one"
        ) from error
    return listening


def _libraries() -> tuple[Any, Any]:
    try:
        import uvicorn

        from influence_dag.explorer.app import app_of
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("uvicorn", "starlette"):
            raise
        raise ExplorerError(
            f"the explorer needs {missing}: pip install 'influence-dag[explore]'"
        ) from error
    return uvicorn, app_of
