"""Running a study's job in this process, with a progress bar and the stages' own words."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from tqdm import tqdm

from influence_dag.components.dead_runs import known_alive

QUIET = {"loggers": {"progress": {}}}


def in_process(
    definitions: dg.Definitions,
    job_name: str,
    *,
    home: Path | None,
    progress: bool | None,
    left: Callable[[], dict[str, str]] = dict,
) -> list[str]:
    """Execute the job, recorded in `home`; returns what the failed asset checks said.

    A recorded run that succeeds is tagged with what it has `left`.
    Checks that only warn are printed and stop nothing. A failing asset raises, SIGINT and SIGTERM
    are a `KeyboardInterrupt`.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    total = len({node.name for node in definitions.resolve_job_def(job_name).nodes})
    with tqdm(total=total, unit="step", disable=not shown, file=sys.stderr) as bar:
        handler = _EventHandler(bar)
        logger = dg.Definitions(loggers={"progress": _logger(handler)})
        job = dg.Definitions.merge(definitions, logger).resolve_job_def(job_name)
        with recorded_or_forgotten(home) as instance, known_alive(instance) as run_id:
            try:
                job.execute_in_process(
                    instance=instance, raise_on_error=True, run_config=QUIET, run_id=run_id
                )
            except DagsterExecutionInterruptedError:
                raise KeyboardInterrupt from None
            except dg.DagsterError:
                if not (failed := _failed_checks(instance, run_id, handler)):
                    raise  # else: a blocking check stopped the run, as it should
                return failed
            failed = _failed_checks(instance, run_id, handler)
            if not failed and not instance.is_ephemeral:
                instance.add_run_tags(run_id, left())
            return failed


def _failed_checks(
    instance: dg.DagsterInstance, run_id: str, handler: "_EventHandler"
) -> list[str]:
    """What the run's record says, which logging that code has switched off does not lessen."""
    records = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluations = [record.get_dagster_event().asset_check_evaluation_data for record in records]
    for each in evaluations:
        handler.warn(each)
    return [
        in_a_line(each)
        for each in evaluations
        if not each.passed and each.severity == dg.AssetCheckSeverity.ERROR
    ]


def in_a_line(check: dg.AssetCheckEvaluation) -> str:
    return f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description}"


@contextmanager
def recorded_or_forgotten(home: Path | None) -> Iterator[dg.DagsterInstance]:
    """The instance in a folder, which the UI shows; without one, one that forgets and is silent."""
    if not home:
        with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
            yield instance
        return
    from influence_dag.components.databases import kept_open

    home.mkdir(parents=True, exist_ok=True)
    with kept_open(), dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def _logger(handler: logging.Handler) -> dg.LoggerDefinition:
    @dg.logger
    def progress(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("influence_dag.progress", logging.DEBUG)
        logger.addHandler(handler)
        return logger

    return progress


class _EventHandler(logging.Handler):
    """Moves the bar at every finished step, prints what stages report and checks warn of."""

    def __init__(self, bar: tqdm):
        super().__init__()
        self.bar = bar
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        event: dg.DagsterEvent | None = meta.get("dagster_event")
        if event:
            self._follow(event)
        elif record.levelno >= logging.INFO:
            self.bar.write(str(meta.get("orig_message", record.getMessage())), file=sys.stderr)

    def _follow(self, event: dg.DagsterEvent) -> None:
        if event.event_type_value == "STEP_SUCCESS":
            _study, *names = str(event.step_key).split("__")
            self.bar.set_description("/".join(names), refresh=False)
            self.bar.update()
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            self.warn(event.asset_check_evaluation_data)

    def warn(self, evaluation: dg.AssetCheckEvaluation) -> None:
        """Print a check that only warns, once."""
        told = f"warning: {in_a_line(evaluation)}"
        tolerated = not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN
        if tolerated and told not in self._warned:
            self._warned.add(told)
            self.bar.write(told, file=sys.stderr)
