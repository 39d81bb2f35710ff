"""Tutorials run as they stand and print what they say."""

import re
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from influence_dag.study import RefreshSettings

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"


def blocks(tutorial: str, language: str) -> list[str]:
    fence, text = rf"^```{language}\n(.*?)^```", (TUTORIALS / f"{tutorial}.md").read_text()
    return re.findall(fence, text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("tutorial", ["refresh", "your_network"])
def test_a_tutorial_prints_what_it_says(tutorial, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data" / "digits", tmp_path / "data" / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    names: dict = {}
    printed = []
    for block in blocks(tutorial, "python"):
        with redirect_stdout(StringIO()) as shown:
            exec(compile(block, tutorial, "exec"), names)
        printed.append(shown.getvalue())
    assert [text for text in printed if text] == blocks(tutorial, "text")


def test_the_settings_that_it_shows_are_valid():
    (text,) = blocks("refresh", "yaml")
    settings = RefreshSettings.model_validate(yaml.safe_load(text)["refresh"])
    assert settings.automation
    assert settings.schedule == "0 3 * * *"
