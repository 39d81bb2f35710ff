"""The blocks of code and of what they print in the tutorials."""

import re
import shutil
import sys
from contextlib import redirect_stdout
from importlib import invalidate_caches
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"


def blocks(tutorial: str, language: str) -> list[str]:
    fence, text = rf"^```{language}\n(.*?)^```", (TUTORIALS / f"{tutorial}.md").read_text()
    return re.findall(fence, text, flags=re.MULTILINE | re.DOTALL)


def assert_it_prints_what_it_says(
    tutorial: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run beside the digits, in an empty folder."""
    shutil.copytree(ROOT / "data" / "digits", folder / "data" / "digits")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    invalidate_caches()  # of the folder `try` of a tutorial before
    names: dict = {}
    printed = []
    for block in blocks(tutorial, "python"):
        with redirect_stdout(StringIO()) as shown:
            exec(compile(block, tutorial, "exec"), names)
        printed.append(shown.getvalue())
    assert [text for text in printed if text] == blocks(tutorial, "text")
