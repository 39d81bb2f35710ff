"""The page of all settings is current, complete, and true to what is accepted."""

from pathlib import Path

import pytest
from every_setting import settings

from influence_dag.study.reference import reference
from influence_dag.study.study import StudySettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def sections(page: str) -> dict[str, str]:
    """The text of each section, by its title; what comes first has none."""
    first, *others = page.replace("\n### ", "\n## ").split("\n## ")
    return {"": first} | {text.partition("\n")[0]: text for text in others}


def test_the_page_is_what_the_settings_say():
    assert PAGE.read_text() == reference(), "run `make settings`"


def test_every_setting_has_a_row_that_says_what_it_means():
    found = sections(PAGE.read_text())
    for path, name in settings(StudySettings):
        rows = [row for row in found[path].splitlines() if row.startswith(f"| `{name}` |")]
        assert len(rows) == 1, (path, name)
        _, _, kind, default, _, meaning, _ = rows[0].replace(r"\|", "/").split("|")
        assert all(cell.strip() for cell in (kind, default, meaning)), rows


@pytest.mark.parametrize(
    "row",
    [
        "| `train` | text or list of text | required |",
        "| `damping` | number ≥ 0 or list of number ≥ 0 or `auto` | none |",
        "| `block_bytes` | whole number or text | 64 MiB | bytes |",
        "| `from` | `build`, `checkpoint` | `build` |",
        "| `lock_timeout` | number > 0 | `3600.0` | seconds |",
        "| `share` | number > 0 and < 1 | `0.1` |",
    ],
)
def test_rows_say_type_default_and_unit(row):
    assert row in PAGE.read_text()
