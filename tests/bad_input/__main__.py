"""`python -m bad_input` (with `tests` on the path): the sentences of kinds, and the page of them.

Kinds without a sentence get the one that comes; one that comes in other words than it should is
printed, and taken over with `--accept`.
"""

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

from bad_input.kinds import Kind, Section, meet
from bad_input.table import FILE, PAGE, SECTIONS, as_page, as_toml, is_said, sentences
from tiny_project import Project


def heard(section: Section, kind: Kind, finished: Project) -> str:
    """The sentence that comes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "project"
        root.mkdir()
        project = finished.copy(root) if section.finished else Project(root)
        with contextlib.redirect_stderr(io.StringIO()):
            return meet(section, kind, project).sentence


def main() -> None:
    """Ask every kind, and write the page."""
    warnings.simplefilter("ignore")
    known = sentences() if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        finished = Project(Path(folder))
        finished.materialize()
        found = {}
        for section in SECTIONS:
            found[section.title] = {}
            for kind in section.kinds:
                says = known.get(section.title, {}).get(kind.name)
                came = heard(section, kind, finished)
                if says is None or (not is_said(says, came) and "--accept" in sys.argv):
                    says = came
                elif not is_said(says, came):
                    sys.stdout.write(f"{section.title}: {kind.name}\n- {says}\n+ {came}\n")
                found[section.title][kind.name] = says
    FILE.write_text(as_toml(found))
    PAGE.write_text(as_page(found))


if __name__ == "__main__":
    main()
