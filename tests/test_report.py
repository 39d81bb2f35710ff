"""A study on one page: its verdict follows from numbers, and it shows names as they are."""

import base64
import os
import re
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny_project import Project

from influence_dag.errors import StoreError
from influence_dag.query.report import findings_of, write_report
from influence_dag.query.report.intervals import over_columns, pearson, slope
from influence_dag.query.report.page import as_html
from influence_dag.query.report.rows import ShownRows
from influence_dag.query.report.verdict import Finding, verdict
from influence_dag.stages.graph import artifacts

ODD = {"train": '<script>alert("1")</script>', "test": "$x_1$ & {{ 7 * 7 }} `a` \x1b[31m"}
SHOWN = r'<script>alert("1")</script>', r"$x_1$ & {{ 7 * 7 }} `a` \x1b[31m"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """Rows with names that a page could misread, a refit, and a second version."""
    project = Project(
        tmp_path_factory.mktemp("reported"),
        methods={"cg": None},
        perturbation=None,
    )
    for split, name in ODD.items():
        for position in (0, 1):
            project.edit(split, position, id=f"{name}{position}" if position else name)
    project.refresh()
    project.edit("train", 3, label=2)
    project.write_settings(validation={"leave_one_out": {"rows": 6}})
    project.refresh()
    return project


class Page(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.html = text
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def page(project, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("page") / "tiny.html"
    write_report(project.results, path)
    return Page(path.read_text())


@pytest.fixture
def drawn(page, monkeypatch):
    """To draw a page takes a second, and how it is written asks for nothing that is on it."""
    monkeypatch.setattr("influence_dag.query.report.page.as_html", lambda *_: page.html)


@pytest.mark.usefixtures("drawn")
def test_a_report_takes_the_place_of_a_file_and_of_nothing_else(project, tmp_path):
    target, link = tmp_path / "page.html", tmp_path / "link.html"
    link.symlink_to(target)
    before = os.umask(0o077)
    try:
        write_report(project.results, link)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600, "nobody else's, as the umask says"
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor() as other:
        read = other.submit(pipe.read_bytes)
        write_report(project.results, pipe)
        assert read.result().startswith(b"<!DOCTYPE html>")
    assert pipe.is_fifo()


@pytest.mark.usefixtures("drawn")
def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing(project, tmp_path):
    with pytest.raises(StoreError, match=r"writing .* failed: File name too long; name a file"):
        write_report(project.results, tmp_path / f"{'x' * 300}.html")
    assert list(tmp_path.iterdir()) == []


def test_names_are_shown_as_they_are(page):
    assert "script" not in page.tags
    shown = "\n".join(page.texts)
    for name in SHOWN:
        assert name in shown
    assert "49" not in {text for text in page.texts if "x_1" in text}


def test_a_page_needs_nothing_but_itself(page):
    assert page.addresses
    assert all(each.startswith("data:image/png;base64,") for each in page.addresses)
    for each in page.addresses:
        assert base64.b64decode(each.partition(",")[2]).startswith(b"\x89PNG")
    assert not {"link", "iframe", "object", "form"} & set(page.tags)


def test_a_page_tells_what_it_is_asked_for(page, project):
    shown = "\n".join(page.texts)
    for words in (
        "Trust", "What was measured", "Strongest pairs", "Suspects", "Against refits",
        "Curvature and solves", "Since the last version", "Settings", "version 1 → 2",
        "train rows changed", "train-03", "height", "model.fit.weight_decay", "0.05",
    ):  # fmt: skip
        assert words in shown, words
    strongest = project.results.suspects(1).train.item()
    assert str(strongest)[:20] in shown


def test_a_damping_is_shown_in_few_digits(project):
    findings = replace(findings_of(project.results), damping=(5.000000000000001e-11, 0.1))
    lead = " ".join(Page(as_html(project.results, findings)).texts)
    assert "at λ = 5e-11, 0.1" in lead


def test_every_damping_of_a_sweep_on_blocks_is_told(tmp_path):
    """The blocks without one of their own have a list of them."""
    blocks = {"blocks": "layer", "block_damping": {"0": 5.0}}
    study = Project(tmp_path, damping=[2.0, 3.0], methods={"cg": None, "direct": blocks})
    study.write_settings(perturbation=None)
    study.refresh()
    assert findings_of(study.results).damping == (2.0, 3.0, 5.0)


def test_a_correlation_of_a_single_pair_is_no_number(tmp_path):
    project = Project(tmp_path / "single", perturbation=None)
    for split in ("train", "test"):
        project.write(split, project.rows[split][:1])
    project.refresh()
    write_report(project.results, tmp_path / "single.html")
    texts = Page((tmp_path / "single.html").read_text()).texts
    assert texts.count("–") >= 2
    assert "nan" not in texts


def test_columns_that_differ_much_are_marked(project):
    shown = ShownRows(project.results, "direct")
    spread = np.std([row[1:4] for row in project.rows["train"]], axis=0)
    rows = {row[0]: np.array(row[1:4]) for row in project.rows["train"] + project.rows["test"]}
    pair = next(each for each in shown.pairs if each.test.name in rows)
    for row in (each for each in pair.rows if each.name in rows):
        far = abs(rows[row.name] - rows[pair.test.name]) > spread
        assert [cell.differs for cell in row.cells] == far.tolist()


def test_every_reason_has_a_number(project):
    found = findings_of(project.results)
    assert all(re.search(r"\d", each.says) for each in found.found)
    assert all(re.search(r"\d", reason) for reason in found.verdict.reasons)
    assert found.verdict.is_measured


def test_findings_are_those_of_the_stored_refits(project):
    found = {each.name: each for each in findings_of(project.results).found}
    info = project.results.store.version("validation/leave_one_out").attrs["info"]
    assert found["refits"].number == pytest.approx(info["pearson"])
    assert found["sizes"].number == pytest.approx(info["slope"])
    low, high = found["refits"].interval
    assert low <= found["refits"].number <= high
    assert found["minimum"].outcome == "good"
    assert found["damping"].number == 1.0
    assert found["damping"].says.startswith("λ = 0.05 is 1 times the weight decay")


def test_products_of_gradients_are_no_influences_to_be_trusted(project, tmp_path):
    other = project.copy(tmp_path)
    other.write_settings(methods={"identity": {}})
    other.refresh()
    said = findings_of(other.results, "identity").verdict
    assert any("0 curvature takes part" in reason for reason in said.reasons)


@pytest.mark.parametrize("harm", ["a chunk is lost", "rows are newer"])
def test_what_is_broken_is_not_trusted(project, tmp_path, harm):
    other = project.copy(tmp_path)
    if harm == "a chunk is lost":
        (other.store / "direct/influences/current/influences/c.0.0").unlink()
        words = "1 files of"
    else:
        other.edit("train", 5, label=0)
        from influence_dag.stages import dataset

        dataset.refresh(other.bench())
        words = "1 things have changed since the influences were computed: train rows"
    found = findings_of(other.results).verdict
    assert found.trust == "neither"
    assert any(words in reason for reason in found.reasons)


def test_refits_that_were_held_against_other_influences_are_no_measure(project, tmp_path):
    """An interrupted run has renewed influences: by refits of the old ones they were trusted."""
    other = project.copy(tmp_path)
    for position in range(0, 40, 3):
        other.edit("train", position, label=1)
    bench, late = other.bench(), ("report", "validation/leave_one_out")
    for node in artifacts(bench.study):
        if node.name not in late:
            node.refresh(bench)
    found = findings_of(other.results)
    assert found.verdict.trust == "neither"
    told = "2 artifacts were measured on other influences than these: validation/leave_one_out, rep"
    assert any(told in reason for reason in found.verdict.reasons)
    assert "refits" not in {each.name for each in found.found}
    other.refresh()
    assert "refits" in {each.name for each in findings_of(other.results).found}


def test_refits_that_the_study_asks_for_no_more_are_no_fault_of_its_influences(project, tmp_path):
    """They stay as they are, and materialising the study again would not renew them."""
    other = project.copy(tmp_path)
    other.edit("train", 5, label=0)
    other.write_settings(validation=None)
    other.refresh()
    assert other.results.store.current("validation/leave_one_out") is not None
    found = {each.name: each for each in findings_of(other.results).found}
    assert not {"measured", "refits"} & found.keys()
    assert findings_of(other.results).verdict.trust == "ranks"


def test_a_matrix_that_no_method_uses_any_more_says_nothing_of_a_damping(tmp_path):
    """It stays as it was, of another θ."""
    study = Project(tmp_path, damping=2.0, perturbation=None)
    study.refresh()

    def of_curvature():
        return [
            each.says for each in findings_of(study.results, "cg").found if each.name == "curvature"
        ]

    assert "the smallest eigenvalue of the hessian is" in of_curvature()[0]
    study.settings["methods"].pop("direct")
    study.write_settings()
    study.edit("train", 3, height=9.0)
    study.refresh()
    assert "hessian" in study.results.artifacts
    assert not of_curvature()
    with warnings.catch_warnings(record=True) as told:
        as_html(study.results, findings_of(study.results, "cg"))
    assert not [each for each in told if "hessian" in str(each.message)]
    with pytest.warns(RuntimeWarning, match="hessian was computed before the stored model"):
        study.results.plot.spectrum("hessian")


@pytest.mark.parametrize("size", range(2, 12))
def test_what_is_constant_correlates_with_nothing(size):
    """Of 0.1 rounding of the mean was what correlated."""
    moved = np.random.default_rng(size).normal(size=(3, size))
    assert np.isnan(pearson(np.full((3, size), 0.1), moved))


def test_influences_of_another_damping_than_the_solves_are_not_trusted(project, tmp_path):
    """λ and residuals are the factors', which a run that was interrupted has renewed."""
    other = project.copy(tmp_path)
    other.write_settings(damping=0.37)
    bench = other.bench()
    for node in artifacts(bench.study):
        if not node.name.endswith(("/influences", "/summary")) and node.name != "report":
            node.refresh(bench)
    found = findings_of(other.results).verdict
    assert found.trust == "neither"
    assert any("since the influences were computed: " in reason for reason in found.reasons)
    with pytest.warns(RuntimeWarning, match="before .*the stored direct/influence_factors"):
        other.results.open("direct/influences")


def finding(name: str, number: float, outcome: str, low: float, high: float) -> Finding:
    return Finding(name, number, None, outcome, f"{name} {number}", (low, high))


GOOD = finding("refits", 0.97, "good", 0.95, 0.99)


@pytest.mark.parametrize(
    ("found", "trust"),
    [
        ([GOOD, finding("sizes", 1.02, "good", 0.9, 1.1)], "values"),
        ([GOOD, finding("sizes", 1.02, "good", 0.5, 1.1)], "ranks"),
        ([GOOD, finding("sizes", 2.7, "warn", 2.5, 2.9)], "ranks"),
        ([finding("refits", 0.95, "good", 0.6, 0.99), finding("sizes", 1, "good", 1, 1)], "ranks"),
        ([finding("refits", 0.7, "warn", 0.4, 0.8), finding("sizes", 1, "good", 1, 1)], "neither"),
        ([finding("refits", 0.2, "bad", 0.1, 0.3), finding("sizes", 1, "good", 1, 1)], "neither"),
        ([finding("subsets", 0.7, "good", 0.65, 0.75)], "ranks"),
        ([finding("subsets", 0.55, "good", 0.4, 0.7)], "neither"),
        ([Finding("residual", 1.0, 1e-4, "bad", "1 is much"), GOOD], "neither"),
        ([Finding("minimum", 1e-7, None, "good", "at 1e-7")], "ranks"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_numbers(found, trust):
    said = verdict(found)
    assert said.trust == trust
    assert said.text.startswith("Trust")
    measured = any(each.name in ("refits", "subsets") for each in found)
    assert said.is_measured == measured
    assert ("nothing was refitted" in said.text) != measured


def test_intervals_hold_what_they_are_of():
    """Of correlated columns, and of a line without noise, which leaves no doubt."""
    rng = np.random.default_rng(1)
    predicted = rng.normal(size=(9, 40))
    np.testing.assert_allclose(over_columns(slope, predicted, 2 * predicted), (2, 2))
    np.testing.assert_allclose(over_columns(pearson, predicted, 2 * predicted), (1, 1))
    low, high = over_columns(pearson, predicted, predicted + rng.normal(size=(9, 40)))
    assert low < 1 / np.sqrt(2) < high
    assert high - low < 0.2
    assert np.isnan(over_columns(pearson, predicted, np.zeros((9, 40)))).all()


def test_a_method_that_there_is_not_is_answered_with_the_nearest(project):
    with pytest.raises(StoreError, match="did you mean 'direct'"):
        findings_of(project.results, "drect")
