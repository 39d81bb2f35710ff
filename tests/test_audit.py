"""An audit that nobody answered is not a clean one."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([FINE], 0, "1 of 1 dependencies were audited by pypi, 0 have known"),
        ([FINE, BAD], 1, "b 2: CVE-1, mended in 2.1"),
        ([FINE, UNKNOWN], 2, "not audited, since pypi does not answer for them: c"),
        ([BAD, UNKNOWN], 1, "1 of 2 dependencies were audited"),
        ([], 2, "0 of 0"),
    ],
)
def test_it_ends_well_only_when_all_were_looked_up(audit, capsys, found, code, said):
    assert audit.verdict(found, "pypi") == code
    assert said in capsys.readouterr().out


def test_a_service_that_does_not_answer_is_said(audit, capsys, monkeypatch):
    class Done:
        stdout, stderr = "", "requests.exceptions.ConnectionError: no such host"

    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: Done)
    assert audit.main("osv") == 2
    assert "nothing was audited: the service osv cannot be reached" in capsys.readouterr().out
