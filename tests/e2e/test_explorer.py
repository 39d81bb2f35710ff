"""The explorer as a person uses it: filter, open a row, compare, look at a pair, mark, export.

The campaign walks the same way over digits with 3 % of the labels flipped, mends them, refreshes,
and leaves the pictures that the documentation shows in the folder `PICTURES`.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, chromium
from project_copy import copy_project
from tiny_project import Project

from influence_dag.explorer.marks import Marks
from influence_dag.query.results import open_study
from influence_dag.running import materialize
from influence_dag.texts import literal

pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
]
MARKUP = "<img src=x onerror=document.title='taken'> $x_1$ **bold** \u202eleft"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1280, 900)
        yield opened


class Visit:
    """A person before the page of one study."""

    def __init__(self, page: Page, url: str, album: Path):
        self.page, self.url, self.album = page, url, album
        page.open("about:blank", showing="")
        page.open(url, showing="Test rows")
        self.settled()

    def settled(self) -> None:
        """What was asked for is drawn, its pictures too, and it fits in the window."""
        self.page.wait_until("document.body.dataset.turn && !document.querySelector('main.busy')")
        seen = "[...document.images].filter((one) => one.getBoundingClientRect().top < innerHeight)"
        self.page.wait_until(f"{seen}.every((image) => image.complete)")
        wide = "document.documentElement.scrollWidth <= window.innerWidth"
        assert self.page.run(wide), "no scrolling sideways at 1280 pixels"
        assert self.page.run(f"{seen}.filter((image) => !image.naturalWidth).length") == 0

    def to(self, address: str) -> None:
        self.after(f"location.hash = {json.dumps(address)}")

    def after(self, code: str) -> None:
        """Do something, and wait for the page that follows."""
        turn = self.page.run("document.body.dataset.turn")
        self.page.run(code)
        self.page.wait_until(f"document.body.dataset.turn > {turn}")
        self.settled()

    def choose(self, name: str, value: str) -> str:
        """Code that picks an option, as a person would."""
        return (
            f"(() => {{ const one = document.querySelector('[aria-label=\"{name}\"]'); "
            f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('change')); }})()"
        )

    def texts(self, selector: str) -> list[str]:
        each = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.page.run(
            f"{each}.map((one) => (one.innerText ?? one.firstChild.textContent).trim())"
        )

    def photograph(self, name: str, height: int = 900, *, of: str = "main") -> None:
        """The page in a window of that height, from the top or with some part of it in view."""
        self.page.resize(1280, height)
        self.page.run("document.getElementById('toast').className = ''")
        self.page.run(f"document.querySelector({json.dumps(of)}).scrollIntoView()")
        self.page.run("scrollBy(0, -76)")
        self.settled()
        time.sleep(0.3)  # what fades out has gone
        self.page.photograph(self.album / f"{name}.png")
        smaller(self.album / f"{name}.png")
        self.page.resize(1280, 900)


def smaller(file: Path) -> None:
    """The picture in 256 colours: a third of the bytes."""
    from PIL import Image

    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


@pytest.fixture(scope="module")
def tiny(finished_project: Project, tmp_path_factory) -> Project:
    return finished_project.copy(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def visit(page: Page, tiny: Project, tmp_path_factory) -> Iterator[Visit]:
    serving = tiny.results.explore()
    yield Visit(page, serving.url, tmp_path_factory.mktemp("album"))
    serving.stop()


def test_mistakes_are_found_by_a_filter_and_a_label(visit, tiny):
    visit.after("document.querySelector('.check input').click()")
    shown = visit.texts("table.rows tbody tr .id")
    summary = tiny.results.open("direct/summary").load()
    wrong = summary.test[(summary.test_predicted != summary.test_label).values].values
    assert set(shown) == set(wrong)
    assert all(text.startswith("✗") for text in visit.texts("td .verdict"))
    visit.after(visit.choose("label", "1"))
    assert set(visit.texts("table.rows tbody tr .id")) <= set(wrong)


def test_a_search_narrows_the_rows_while_one_types(visit):
    visit.to("#/test")
    visit.after(
        "(() => { const box = document.querySelector('input[type=search]'); box.value = '07'; "
        "box.dispatchEvent(new Event('input')); })()"
    )
    assert visit.texts("table.rows tbody tr .id") == ["test-07"]
    assert visit.page.run("document.activeElement.type") == "search", "one goes on typing"


def test_numbers_of_the_data_are_shown_as_they_are_known(visit):
    values = "[1938, 148380557.25, 0.000340324, -0.1, 5, 4e-7, null]"
    code = f"import('/parts.js').then((m) => window.shown = {values}.map(m.given)) && null"
    visit.page.run(code)
    visit.page.wait_until("window.shown")
    wanted = ["1938", "148380557", "0.000340324", "−0.1", "5", "4e−7", "–"]
    assert visit.page.run("window.shown") == wanted


def test_a_table_that_is_wider_than_the_window_scrolls_by_itself(visit):
    visit.to("#/train")
    visit.page.run("document.querySelector('table.rows').style.minWidth = '3000px'")
    visit.settled()
    visit.to("#/test?search=07")


def test_a_row_opens_with_what_helped_and_harmed_it(visit, tiny):
    visit.after("document.querySelector('table.rows tbody tr').click()")
    row = tiny.results["direct"].influences.sel(test="test-07").load()
    assert visit.texts(".list.helps .who a") == row.idag.top_k(8).train.values.tolist()
    assert visit.texts(".list.harms .who a") == row.idag.bottom_k(8).train.values.tolist()
    assert visit.texts("aside .columns th") == ["height", "width", "depth"]
    assert visit.page.run("document.querySelectorAll('svg.chart rect').length") > 3


def test_another_method_stands_beside_it(visit):
    other = "method=cg&damping=&version="
    visit.page.run(visit.choose("side by side with", other))
    visit.page.wait_for("Spearman")
    assert visit.texts(".agree .stat dd")[0] in ("1", "0.999")
    assert len(visit.texts(".ranks")) == 2


def test_a_pair_shows_which_columns_do_it(visit):
    visit.after("document.querySelector('.list.helps .line').click()")
    assert sorted(visit.texts(".map svg .label")) == ["depth", "height", "width"]
    assert "would change by about" in visit.page.run("document.body.innerText")
    assert len(visit.texts("table.differences tbody tr")) == 3


def test_rows_are_marked_where_they_are_seen_and_the_edit_is_predicted(visit, tiny):
    visit.after("location.hash = '#/train'")
    assert visit.page.run("document.querySelectorAll('.cloud circle').length") == 40
    first = visit.texts("table.rows tbody tr .id")[0]
    visit.page.run("document.querySelector('table.rows tbody tr .mark button').click()")
    visit.page.wait_until("document.querySelector('nav .badge')?.innerText === '1'")
    visit.to(f"#/train/{first}")
    assert visit.texts(".mark button.on") == ["drop"]
    note = "document.querySelector('.note')"
    visit.page.run(f"window.before = {note}")
    visit.page.run(
        f"{note}.value = {json.dumps(MARKUP)}; {note}.dispatchEvent(new Event('change'))"
    )
    file = tiny.store.with_name("tiny.edits") / "marks.json"
    visit.page.wait_until(f"{note} !== window.before")  # drawn anew with what was kept
    visit.to("#/edits")
    assert json.loads(file.read_text())["marks"][first]["note"] == MARKUP
    predicted = float(tiny.results["direct"].influences.sel(train=first).mean()) / 40
    shown = visit.texts("section .lead b")[0].replace("−", "-")
    assert float(shown) == pytest.approx(predicted, rel=5e-3)


def test_what_people_wrote_is_shown_as_they_wrote_it(visit):
    assert visit.texts("td.id p") == [literal(MARKUP, 200)]
    visit.to("#/test/" + "%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert "no test row '<script>alert(1)</script>'" in visit.page.run("document.body.innerText")
    assert visit.page.run("document.title") != "taken"
    assert visit.page.run("document.querySelectorAll('main script, main img').length") == 0


def test_the_edit_is_exported_and_waits_for_the_refit(visit, tiny):
    visit.to("#/edits")
    visit.after("document.querySelector('button.primary').click()")
    assert "Not to be seen yet" in visit.page.run("document.body.innerText")
    folder = tiny.store.with_name("tiny.edits") / "0001"
    edited = list(csv.reader((folder / "edited-train.csv").open()))
    assert len(edited) == 40, "a header, and 39 rows"
    visit.photograph("edits")
    assert (visit.album / "edits.png").stat().st_size > 10_000


def test_marks_are_cleared_when_that_is_said_twice(visit, tiny):
    clear = "[...document.querySelectorAll('.actions button')].at(-1)"
    file = tiny.store.with_name("tiny.edits") / "marks.json"
    visit.page.run(f"{clear}.click()")
    assert visit.page.run(f"{clear}.innerText") == "Clear the mark for good?"
    assert json.loads(file.read_text())["marks"]
    visit.after(f"{clear}.click()")
    assert json.loads(file.read_text())["marks"] == {}


def test_another_method_is_shown_at_its_own_dampings(visit):
    visit.to("#/test?method=direct&damping=0.05")
    visit.after(visit.choose("method", "cg"))
    assert visit.page.run("location.hash") == "#/test?method=cg"


BOX = """
import(new URL("parts.js", document.baseURI).href)
  .then(({ markBox }) => { window.box = markBox(
    { id: "train-00", mark: { action: "keep", note: "mine" }, predicted: null, wrong: null },
    { study: { labels: { train: [] } }, at: () => ({}), marked: () => {} }, { full: true }); });
"""


def test_a_note_is_what_was_written_as_one_where_new_labels_are_numbers(visit, tiny):
    visit.page.run(BOX)
    visit.page.wait_until("Boolean(window.box)")
    visit.page.run("box.querySelector('.picker').value = '2.5'")
    visit.page.run("box.querySelector('button').click()")
    visit.page.wait_until("Boolean(box.querySelector('button.on.drop'))")
    marks = json.loads((tiny.store.with_name("tiny.edits") / "marks.json").read_text())["marks"]
    assert marks["train-00"]["note"] == "mine"


SLOW = """
const told = window.fetch;
window.fetch = async (url, options) => {
  const answer = await told(url, options);
  if (String(url).includes("id=test-01")) await new Promise((then) => setTimeout(then, 500));
  return answer;
};
"""


def test_an_answer_that_comes_late_is_not_shown_at_another_address(visit):
    visit.to("#/test")
    visit.page.run(f"(() => {{ {SLOW} }})()")
    visit.page.run("location.hash = '#/test/test-01'")
    visit.to("#/test/test-02")
    time.sleep(1.0)
    assert visit.texts("h1") == ["test-02"]


def test_long_names_stay_within_the_window(page, project, tmp_path):
    """What `Visit.settled` asks of each page."""
    names = {"train": "x" * 300, "test": "y" * 300}
    for split, name in names.items():
        project.edit(split, 0, id=name)
        file = project.root / f"{split}.csv"
        file.write_text(file.read_text().replace("height", "z" * 200))
    project.refresh()
    Marks(str(project.store)).put(names["train"], "drop")
    serving = project.results.explore()
    visit = Visit(page, serving.url, tmp_path)
    pair = f"#/pair/{names['test']}/{names['train']}"
    of_rows = (f"#/{split}/{name}" for split, name in names.items())
    for address in ("#/train?sort=file", *of_rows, pair, "#/edits"):
        visit.to(address)
    serving.stop()


FLIPPED = 45  # 3 % of 1,500


@pytest.fixture(scope="module")
def flipped(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Digits with 3 % of the training labels flipped, and the right labels of these rows."""
    project = copy_project(tmp_path_factory.mktemp("digits") / "project")
    file = project / "data/digits/train.csv"
    head, *rows = list(csv.reader(file.open()))
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(rows), FLIPPED, replace=False)
    right = {rows[k][0]: rows[k][-1] for k in chosen}
    for k, by in zip(chosen, rng.integers(1, 10, FLIPPED), strict=True):
        rows[k][-1] = str((int(rows[k][-1]) + int(by)) % 10)
    with file.open("w", newline="") as written:
        csv.writer(written, lineterminator="\n").writerows([head, *rows])
    materialize(project / "assets/digits", progress=False)
    return project, right


@pytest.mark.campaign
def test_the_loop_on_digits_with_three_in_a_hundred_labels_flipped(
    page, flipped, tmp_path_factory, capsys
):
    project, right = flipped
    album = Path(os.environ.get("PICTURES") or tmp_path_factory.mktemp("album"))
    album.mkdir(parents=True, exist_ok=True)
    serving = open_study(project / "data/store/digits").explore()
    visit = Visit(page, serving.url, album)
    visit.photograph("test-rows")
    visit.to("#/test/test-0160")
    visit.photograph("test-row", 780)
    visit.page.run(visit.choose("side by side with", "method=cg&damping=&version="))
    visit.page.wait_for("Spearman")
    visit.photograph("side-by-side", 680, of=".compare")
    helper = visit.texts(".list.harms .who a")[1]
    visit.to(f"#/pair/test-0160/{helper}")
    visit.photograph("pair", 720)
    found = look_through(visit, right)
    visit.to("#/edits")
    compute = (
        "[...document.querySelectorAll('button')].find((one) => one.innerText === 'Compute them')"
    )
    visit.after(f"{compute}.click()")
    visit.photograph("edits")
    visit.after("document.querySelector('button.primary').click()")
    edited = project / "data/store/digits.edits/0001/edited-train.csv"
    shutil.copy(edited, project / "data/digits/train.csv")
    materialize(project / "assets/digits", progress=False)
    visit.to("#/test")
    visit.to("#/edits")
    visit.photograph("outcome", 540, of=".outcome")
    serving.stop()
    with capsys.disabled():
        print("\n", found, visit.texts(".result, .outcome .stats"))
    assert found["flipped"] == FLIPPED
    assert float(visit.texts(".outcome .stat dd")[0]) > 0.6, "Spearman of predicted and actual"


def look_through(visit: Visit, right: dict[str, str]) -> dict[str, int]:
    """Go down the suspects as somebody who can read digits, and relabel what is wrong."""
    visit.to("#/train")
    visit.photograph("training-rows")
    found = {"looked at": 0, "flipped": 0}
    for turn in (0, 1):
        visit.to(f"#/train?page={turn}")
        for name in visit.texts("table.rows tbody tr .id"):
            found["looked at"] += found["flipped"] < FLIPPED
            if name in right:
                found["flipped"] += 1
                relabel(visit, name, right[name])
    return found


def relabel(visit: Visit, name: str, label: str) -> None:
    marked = visit.page.run("document.querySelector('nav .badge')?.innerText ?? '0'")
    visit.page.run(
        "[...document.querySelectorAll('table.rows tbody tr')]"
        f".filter((one) => one.querySelector('.id').innerText === '{name}')"
        ".map((one) => one.querySelector('.picker'))"
        f".forEach((one) => {{ one.value = '{label}'; one.dispatchEvent(new Event('change')); }})"
    )
    visit.page.wait_until(
        f"document.querySelector('nav .badge')?.innerText === '{int(marked) + 1}'"
    )
