"""Headless Chromium, driven over its debugging protocol: open a page, read, click, photograph."""

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from websockets.sync.client import ClientConnection, connect

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1600,1300",
    "--remote-debugging-port=0",
]
CLICK = """
(() => {
  const found = [...document.querySelectorAll("button, a, span, div")]
    .filter((element) => element.innerText?.trim() === %s);
  found.at(-1)?.click();
  return found.length > 0;
})()
"""
PRESS = """
(() => {
  const found = [...document.querySelectorAll("button")]
    .find((element) => element.innerText?.trim().startsWith(%s));
  found?.click();
  return Boolean(found);
})()
"""
IMAGES = "[...document.images].map((image) => [image.src.slice(0, 22), image.naturalWidth])"


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection):
        self._connection, self._calls = connection, 0

    def open(self, url: str, *, showing: str) -> str:
        """Go to a page and wait until it shows the words; returns all of its text."""
        self.leave()  # so that no words are the last page's
        self._call("Page.navigate", url=url)
        return self.wait_for(showing)

    def leave(self) -> None:
        """Show nothing, which asks the server for nothing: the UI does all the time."""
        self._call("Page.navigate", url="about:blank")

    def wait_for(self, words: str, *, seconds: float = 60) -> str:
        deadline, text = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            text = self._evaluate("document.body?.innerText ?? ''")
            if words in text:
                return text
            time.sleep(0.2)
        raise TimeoutError(f"no {words!r} after {seconds:g} s on a page that says:\n{text}")

    def click(self, words: str) -> None:
        assert self._evaluate(CLICK % json.dumps(words)), f"nothing says just {words!r}"

    def click_what_begins_with(self, words: str) -> None:
        """A button whose words may go on: with a number, with dots."""
        assert self._evaluate(PRESS % json.dumps(words)), f"no button begins with {words!r}"

    def run(self, code: str) -> Any:
        """The value of an expression on the page."""
        return self._evaluate(code)

    def wait_until(self, code: str, *, seconds: float = 60) -> None:
        """Wait until an expression on the page is true."""
        deadline = time.monotonic() + seconds
        while not self._evaluate(code):
            if time.monotonic() > deadline:
                text = self._evaluate("document.body?.innerText ?? ''")
                raise TimeoutError(f"not {code} after {seconds:g} s on a page that says:\n{text}")
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """As a window of that size would show it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def images(self) -> list[tuple[str, int]]:
        """How each picture's source begins, and its width; 0 when it could not be shown."""
        return [(source, width) for source, width in self._evaluate(IMAGES)]

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _evaluate(self, code: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=code, returnByValue=True)
        return answer["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(60))
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer["error"]
                return answer["result"]


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile."""
    command = ["chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            with connect(_tab(process), max_size=None, proxy=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()


def _tab(process: subprocess.Popen[str]) -> str:
    """The address at which the only tab listens."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"ws://(127\.0\.0\.1:\d+)/", line):
            tabs = json.load(build_opener(ProxyHandler({})).open(f"http://{found[1]}/json"))
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    raise RuntimeError("chromium ended before it listened")
