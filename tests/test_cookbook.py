"""The fifteen one-liners of the cookbook run as they stand, and its pictures are those they draw.

`python tests/test_cookbook.py` draws the pictures anew.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from influence_dag.query.contents import Content

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cookbook.md").read_text()
PICTURES = ROOT / "docs" / "pictures"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("study.")]
CALLED = re.compile(r"study\.(plot\.)?(\w+)\(")


def test_the_cookbook_has_fifteen_one_liners_and_their_pictures():
    assert len(LINES) == 15
    drawn = {name for plot, name in (CALLED.match(line).groups() for line in LINES) if plot}
    shown = re.findall(r"\((pictures/cookbook-(\w+)\.png)\)", PAGE)
    assert {name for _, name in shown} == drawn
    assert all((ROOT / "docs" / path).stat().st_size > 2000 for path, _ in shown)


@pytest.fixture(scope="module")
def study(finished_project):
    """The small study, whose rows stand for the digits."""
    return finished_project.results


@pytest.mark.parametrize("line", LINES)
def test_a_one_liner_answers(study, line, monkeypatch):
    monkeypatch.setattr(Content, "image", property(lambda row: np.eye(8)), raising=True)
    small = re.sub(r"test-..\d(\d)", r"test-0\1", line)
    small = re.sub(r"train-0.(\d)\d", r"train-0\1", small)
    found = eval(compile(small, "cookbook", "eval"), {"study": study})
    assert found is not None
    assert isinstance(found, Figure) == (".plot." in line)


def draw() -> None:
    """The page's pictures, from the digits that `make demo` has computed."""
    import influence_dag as idag
    from influence_dag.query import figures

    study = idag.open_study(ROOT / "data" / "store" / "digits")
    PICTURES.mkdir(exist_ok=True)
    for line in LINES:
        plot, name = CALLED.match(line).groups()
        if plot:
            figure = eval(line, {"study": study})
            (PICTURES / f"cookbook-{name}.png").write_bytes(figures.png(figure))
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    draw()
