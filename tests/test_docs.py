"""The documentation: its links lead somewhere, its pages are in the site, its code is code."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import influence_dag
from influence_dag.cli.main import main
from influence_dag.cli.reference import page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text()))


@cache
def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in its address."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", each).lower() for each in headings)
    return {re.sub(r"[^\w\- ]", "", each).strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("path", ALL, ids=name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(prose(path)):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_of_the_site_stay_inside_it(path):
    for target in LINK.findall(prose(path)):
        there = (path.parent / target.partition("#")[0]).resolve()
        assert there.is_relative_to(DOCS), f"{target}: name the file, or link the repository"


def in_nav(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry if isinstance(entry, list) else [*entry.values()]
    return [page for part in parts for page in in_nav(part)]


def test_every_page_is_found_in_the_sites_navigation_once():
    settings = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = in_nav(settings["nav"])
    assert len(pages) == len(set(pages))
    assert {DOCS / each for each in pages} == set(PAGES)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_code_is_code(path):
    for language, text in FENCE.findall(path.read_text()):
        if language == "python":
            used = re.findall(r"(?<!\.)\bidag\.([a-z]\w*)", text)
            assert ast.parse(text)
            assert not set(used) - set(dir(influence_dag)), used
        if language == "yaml":
            assert yaml.safe_load(text), text
        if language == "sh":
            named = re.findall(r"(?:^|bin/)influence-dag (\w+)", text, flags=re.MULTILINE)
            assert set(named) <= main.commands.keys(), named
            for target in re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE):
                makefile = (ROOT / "Makefile").read_text()
                assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_reference_has_every_public_name_and_every_command():
    shown = re.findall(r"^::: influence_dag\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(shown) == len(set(shown))
    assert {*shown} == {*influence_dag.__all__} - {"__version__"}
    assert (DOCS / "commands.md").read_text() == page(), "run `make commands`"
