"""The table: every kind of bad input, and the sentence that comes of it (`sentences.toml`).

`…` in a sentence stands for what the system or another library says.
"""

import json
import re
import tomllib
from pathlib import Path

from bad_input import (
    of_checkpoints,
    of_code,
    of_commands,
    of_defs,
    of_files,
    of_groups,
    of_memory,
    of_models,
    of_settings,
    of_stores,
    of_tables,
)
from bad_input.kinds import Kind, Section

MODULES = (
    *(of_defs, of_settings, of_files, of_tables, of_groups, of_code, of_models, of_checkpoints),
    *(of_stores, of_commands, of_memory),
)
SECTIONS: list[Section] = [section for module in MODULES for section in module.SECTIONS]
KINDS: list[tuple[Section, Kind]] = [(each, kind) for each in SECTIONS for kind in each.kinds]

FILE = Path(__file__).with_name("sentences.toml")
PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
HEAD = """\
# What comes of bad input

Each of these {count} kinds is given to the library by a test, which asks for the sentence, for no
traceback and for no more than 3 s of processor time. Paths start at the project's folder; `…`
stands for what the system or another library says. Made by `make bad-input` from `tests/bad_input`.
"""


def sentences() -> dict[str, dict[str, str]]:
    """The sentence of each kind, by section and name."""
    return tomllib.loads(FILE.read_text())


def is_said(says: str, sentence: str) -> bool:
    """Whether a sentence is the expected one."""
    parts = (re.escape(part) for part in says.split("…"))
    return re.fullmatch(".*".join(parts), sentence, re.DOTALL) is not None


def as_toml(found: dict[str, dict[str, str]]) -> str:
    """Sentences as they are kept; what JSON writes of a text is TOML as well."""
    return "\n".join(
        "\n".join(
            [f"[{_text(title)}]", *(f"{_text(k)} = {_text(s)}" for k, s in kinds.items()), ""]
        )
        for title, kinds in found.items()
    )


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_page(found: dict[str, dict[str, str]]) -> str:
    """The table as a page of the documentation."""
    lines = [HEAD.format(count=len(KINDS))]
    for section in SECTIONS:
        lines += [f"## {section.title}", "", f"Reached through {section.reached}.", ""]
        lines += ["| given | what comes |", "|---|---|"]
        said = found[section.title]
        lines += [f"| {_cell(kind.name)} | {_cell(said[kind.name])} |" for kind in section.kinds]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """One cell: on one line, nothing in it meaning anything to Markdown but code."""
    shown = re.sub(r"([\\|<>*_\[\]{}#])", r"\\\1", text)
    return "<br>".join(filter(None, map(str.strip, shown.splitlines())))
