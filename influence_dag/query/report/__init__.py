"""A study on one page: what was measured of it, and a verdict in words; an HTML file."""

from influence_dag.query.report.findings import Findings, findings_of
from influence_dag.query.report.page import write_report
from influence_dag.query.report.verdict import Finding, Verdict

__all__ = ["Finding", "Findings", "Verdict", "findings_of", "write_report"]
