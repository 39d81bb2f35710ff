"""The page as one HTML file: everything escaped, pictures inside, no script, nothing fetched."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from influence_dag import __version__
from influence_dag.errors import StoreError
from influence_dag.query.figures import data_uri
from influence_dag.query.report.findings import Findings, findings_of
from influence_dag.query.report.rows import ShownRows
from influence_dag.query.report.sections import Sections

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults

DPI = 130  # sharp on dense screens and on paper


def write_report(
    results: "StudyResults", path: str | Path, *, method: str | None = None
) -> Findings:
    """Write the study's page to a file; returns what was measured, with its verdict.

    Reads the store alone: no code of the project runs, and the page runs none either.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise StoreError(f"{path.absolute().parent} is no folder; make it first")
    findings = findings_of(results, method)
    _replace(path, as_html(results, findings))
    return findings


def as_html(results: "StudyResults", findings: Findings) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("influence_dag.query.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = partial(data_uri, dpi=DPI)
    return environment.get_template("page.html").render(
        findings=findings,
        sections=Sections(results, findings),
        rows=ShownRows(results, findings.method),
        results=results,
        version=__version__,
    )


def _replace(path: Path, text: str) -> None:
    """Whoever opens the file sees the old page or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
