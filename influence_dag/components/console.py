"""Running a study's job in this process, with a progress bar and the stages' own words."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from tqdm import tqdm

QUIET = {"loggers": {"progress": {}}}


def in_process(definitions: dg.Definitions, job_name: str, *, progress: bool | None) -> list[str]:
    """Execute the job; returns what the failed asset checks said. A failing asset raises."""
    shown = sys.stderr.isatty() if progress is None else progress
    names = {node.name for node in definitions.resolve_job_def(job_name).nodes}
    with tqdm(total=len(names), unit="step", disable=not shown, file=sys.stderr) as bar:
        merged = dg.Definitions.merge(
            definitions, dg.Definitions(loggers={"progress": _logger(bar)})
        )
        with recorded_or_forgotten() as instance:
            result = merged.resolve_job_def(job_name).execute_in_process(
                instance=instance, raise_on_error=True, run_config=QUIET
            )
    return [
        f"{found.asset_key.to_user_string()}: {found.check_name}: {found.description}"
        for found in result.get_asset_check_evaluations()
        if not found.passed
    ]


@contextmanager
def recorded_or_forgotten() -> Iterator[dg.DagsterInstance]:
    """The instance in DAGSTER_HOME, which the UI shows, else one that forgets."""
    home = os.environ.get("DAGSTER_HOME")
    if home:
        Path(home).mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.get() if home else dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _logger(bar: tqdm) -> dg.LoggerDefinition:
    """A Dagster logger that moves the bar at every finished step and prints what stages report."""

    @dg.logger
    def progress(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("influence_dag.progress", logging.INFO)
        logger.addHandler(_BarHandler(bar))
        return logger

    return progress


class _BarHandler(logging.Handler):
    def __init__(self, bar: tqdm):
        super().__init__()
        self.bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        if event is None:
            self.bar.write(str(meta.get("orig_message", record.getMessage())), file=sys.stderr)
        elif event.event_type_value == "STEP_SUCCESS":
            self.bar.set_description(str(event.step_key), refresh=False)
            self.bar.update()
