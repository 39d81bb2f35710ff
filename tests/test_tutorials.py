"""The tutorial on refreshing runs as it stands and prints what it says."""

import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import yaml

from influence_dag.study import RefreshSettings

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorials" / "refresh.md"


def blocks(language: str) -> list[str]:
    fence = rf"^```{language}\n(.*?)^```"
    return re.findall(fence, TUTORIAL.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_refreshing_three_edited_rows(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data" / "digits", tmp_path / "data" / "digits")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    printed = []
    for block in blocks("python"):
        with redirect_stdout(StringIO()) as shown:
            exec(compile(block, TUTORIAL.name, "exec"), names)
        printed.append(shown.getvalue())
    assert printed == blocks("text")


def test_the_settings_that_it_shows_are_valid():
    (text,) = blocks("yaml")
    settings = RefreshSettings.model_validate(yaml.safe_load(text)["refresh"])
    assert settings.automation
    assert settings.schedule == "0 3 * * *"
