"""The page as one HTML file: everything escaped, pictures inside, no script, nothing fetched."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from influence_dag import __version__
from influence_dag.errors import StoreError
from influence_dag.files import write_atomically
from influence_dag.query.figures import data_uri
from influence_dag.query.report.findings import Findings, findings_of
from influence_dag.query.report.rows import ShownRows
from influence_dag.query.report.sections import Sections
from influence_dag.texts import short

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
    try:
        _write(path, as_html(results, findings).encode())
    except OSError as error:
        raise StoreError(
            f"writing {path} failed: {error.strerror or error}; name a file in a folder that can "
            "be written and has room"
        ) from error
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
    environment.filters |= {"uri": partial(data_uri, dpi=DPI), "short": short}
    return environment.get_template("page.html").render(
        findings=findings,
        sections=Sections(results, findings),
        rows=ShownRows(results, findings.method),
        results=results,
        version=__version__,
    )


def _write(path: Path, page: bytes) -> None:
    """Whoever opens the file sees the old page or the new one; a link stays, a pipe is fed."""
    if path.exists() and not path.is_file():  # /dev/stdout would be gone for everybody
        path.write_bytes(page)
    else:
        write_atomically(os.path.realpath(path), page)
