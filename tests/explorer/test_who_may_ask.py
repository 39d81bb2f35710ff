"""Requests of other pages and names are refused; nothing of a study is ever markup or code."""

import json
import re
import sys
from importlib.resources import files

import pytest
from asking import Client
from click.testing import CliRunner

from influence_dag.__main__ import main
from influence_dag.explorer.serving import ExplorerError, is_exposed, run, serve

pytest.importorskip("uvicorn")

TRACE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
PAIR = {"test": "test-03", "train": "train-17"}
PAGES: list[tuple[str, dict]] = [
    ("study", {}),
    ("rows", {"split": "test"}),
    ("row", {"split": "test", "id": "test-03"}),
    ("compare", {"split": "test", "id": "test-03", "with_method": "cg"}),
    ("pair", PAIR),
    ("pair", PAIR | {"method": "cg"}),
    ("scatter", {}),
    ("edits", {}),
]
PAGE = files("influence_dag.explorer").joinpath("page")


def test_it_listens_on_the_loopback_interface_alone(looked_at):
    serving = serve(looked_at.results)
    try:
        assert serving._socket.getsockname()[0] == "127.0.0.1"
        assert serving.url in repr(serving)
        assert serving.url in serving._repr_html_()
    finally:
        serving.stop()


def test_an_open_address_is_warned_of(looked_at, capsys, monkeypatch):
    assert [is_exposed(host) for host in ("127.0.0.1", "localhost", "::1")] == [False] * 3
    monkeypatch.setattr("influence_dag.explorer.serving.Serving.wait", lambda self: None)
    run(looked_at.results, host="0.0.0.0", open_browser=False)
    assert "0.0.0.0 is no loopback address" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(client, looked_at):
    with pytest.raises(ExplorerError, match=r"nothing can listen at 127\.0\.0\.1"):
        serve(looked_at.results, port=client.port)


def test_the_command_says_where_it_is_open(looked_at, monkeypatch):
    monkeypatch.setattr("influence_dag.explorer.serving.Serving.wait", lambda self: None)
    done = CliRunner().invoke(main, ["explore", str(looked_at.store)])
    assert re.fullmatch(r"tiny is open at http://127\.0\.0\.1:\d+/ \(stop: Ctrl-C\)\n", done.output)


def test_a_place_without_a_study_is_told_in_a_line(tmp_path):
    done = CliRunner().invoke(main, ["explore", str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "no study at" in done.output


@pytest.mark.parametrize("library", ["uvicorn", "starlette"])
def test_what_is_not_installed_is_told_with_how_to_have_it(looked_at, monkeypatch, library):
    for name in [each for each in sys.modules if each.startswith("influence_dag.explorer.app")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ExplorerError, match=r"pip install 'influence-dag\[explore\]'"):
        looked_at.results.explore()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_rebound_to_this_machine_gets_nothing(client, host):
    status, body, _ = client.raw("GET", "/api/study", {"Host": host})
    assert status in (400, 403)
    assert b"digits" not in body
    assert b"tiny" not in body


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_this_machines_own_names_are_answered(client, name):
    assert client.raw("GET", "/api/study", {"Host": f"{name}:{client.port}"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1:{port}", "Content-Type": "text/plain"},
    ],
    ids=str,
)
def test_other_pages_write_nothing(client, looked_at, headers):
    own = {name: value.format(port=client.port) for name, value in headers.items()}
    sent = client.ours | {"Content-Type": "application/json"} | own
    body = json.dumps({"id": "train-01", "action": "drop"}).encode()
    status, _, _ = client.raw("POST", "/api/mark", sent, body)
    assert status == 403
    assert "train-01" not in client.get("edits")["marks"]


def test_a_get_writes_nothing(client):
    assert client.raw("GET", "/api/clear", client.ours)[0] == 405


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(client):
    _, body, headers = client.raw("GET", "/", client.ours)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert re.findall(rb"<script[^>]*>", body) == [b'<script type="module" src="explorer.js">']


def test_every_file_of_the_page_is_served_and_asks_nothing_of_the_net(client):
    for file in PAGE.iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        status, body, _ = client.raw("GET", path, client.ours)
        assert (status, body) == (200, file.read_bytes())
        addresses = re.findall(rb"https?://[^\s\"'`]+", body)
        assert set(addresses) <= {b"http://www.w3.org/2000/svg"}, "a name, which is never fetched"


def test_nothing_that_is_shown_is_ever_parsed_as_markup():
    parsing = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
    )
    for file in PAGE.iterdir():
        assert [word for word in parsing if word in file.read_text()] == [], file.name


def test_only_what_is_there_is_served(client):
    for path in ("/../app.py", "/%2e%2e/app.py", "/app.py", "/api/", "/api/__init__"):
        assert client.raw("GET", path, client.ours)[0] == 404, path


def test_no_code_of_the_study_runs_until_somebody_asks_for_it(finished_project, tmp_path):
    """Somebody else's store, in a project whose module would leave a trace."""
    project = finished_project.copy(tmp_path)
    project.write_model(TRACE + (project.root / "tiny_model.py").read_text())
    serving = project.results.explore()
    try:
        asked = Client(serving)
        for path, query in PAGES:
            assert asked.get(path, **query)["status"] == 200, path
        asked.post("mark", {"id": "train-01", "action": "relabel", "label": "2"})
        assert "need the study's code" in asked.post("export", {})["said"][0]
        assert not (project.root / "ran").exists()
        refused = asked.post("relabels", {})
        assert "is not the code that the stored model was made with" in refused["error"]
        assert not (project.root / "ran").exists(), "and other code is never run"
    finally:
        serving.stop()
