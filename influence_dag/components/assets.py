"""A study's graph as Dagster assets, with checks and a job."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from influence_dag import __version__
from influence_dag.addresses import folder_of
from influence_dag.components.edits import edits_asset, observed
from influence_dag.components.keys import DATA_VERSION_TAG, asset_key, upstream_keys
from influence_dag.components.reading import ARTIFACT, IO_MANAGER, STORE, StudyIOManager
from influence_dag.errors import InfluenceDagError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming
from influence_dag.stages.artifacts import Artifact
from influence_dag.stages.graph import artifacts
from influence_dag.study.study import Study
from influence_dag.texts import code

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench

_READER = StudyIOManager()  # one for all studies: their assets say where they are stored


def study_definitions(study: Study, *, pool: str | None = "gpu") -> dg.Definitions:
    """Assets, blocking checks and a refresh job of one study; heavy assets are in `pool`."""
    nodes = list(artifacts(study))
    job = dg.define_asset_job(
        f"{study.name}_refresh",
        selection=dg.AssetSelection.groups(study.name),
        description=f"Bring every artifact of {study.name} up to date; what is current is skipped.",
        executor_def=dg.in_process_executor,
    )
    with _beta_is_no_concern():
        edits = edits_asset(study)
    return dg.Definitions(
        assets=[_source(study), edits, *(_asset(study, node, pool) for node in nodes)],
        asset_checks=[_checks(study, node) for node in nodes if node.checks],
        jobs=[job],
        schedules=list(_schedules(study, job)),
        sensors=list(_sensors(study)),
    )


def _schedules(study: Study, job) -> Iterator[dg.ScheduleDefinition]:
    """The schedule that the study asks for; who writes it wants it to run."""
    if cron := study.settings.refresh.schedule:
        yield dg.ScheduleDefinition(
            name=f"{study.name}_schedule",
            job=job,
            cron_schedule=cron,
            description=f"Brings {study.name} up to date; what is current is skipped.",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )


def _sensors(study: Study) -> Iterator[dg.AutomationConditionSensorDefinition]:
    if study.settings.refresh.automation:
        yield dg.AutomationConditionSensorDefinition(
            f"{study.name}_automation",
            target=dg.AssetSelection.groups(study.name, include_sources=True),
            description=f"Observes the files of {study.name} and refreshes what depends on them.",
            default_status=dg.DefaultSensorStatus.RUNNING,
        )


def _condition(study: Study, condition: dg.AutomationCondition) -> dg.AutomationCondition | None:
    return condition if study.settings.refresh.automation else None


def content_of(study: Study, made: Any = None) -> str:
    """The data version of the input files, or of the rows that a callable has `made`."""
    from influence_dag.datasets.content import source_fingerprint

    folder = folder_of(study.store_address)
    remembered = folder / ".source.json" if folder else None  # else files are read every time
    return source_fingerprint(study.settings.data, study.root, remembered=remembered, made=made)


def _source(study: Study):
    data = study.settings.data

    def source() -> dg.DataVersion:
        return dg.DataVersion(content_of(study))

    with _beta_is_no_concern():
        return dg.observable_source_asset(
            key=asset_key(study, "source"),
            tags=study.settings.dagster.tags,
            automation_condition=_condition(study, dg.AutomationCondition.on_cron("* * * * *")),
            group_name=study.name,
            description=(
                f"The input files: {_listed(data.names('train'))} and "
                f"{_listed(data.names('test'))}. "
                "Observing compares their content."
            ),
        )(source)


@contextmanager
def _beta_is_no_concern() -> Iterator[None]:
    """Of users: what may still change in Dagster is known to this package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(code, names))


def _asset(study: Study, node: Artifact, pool: str | None) -> dg.AssetsDefinition:
    reads_files = "source" in node.reads

    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from influence_dag.components.metadata import materialize_result
        from influence_dag.stages.workbench import Workbench

        bench = Workbench(study, context.log.info)
        tags = _source_seen(context, bench) if reads_files else None
        update = node.refresh(bench)
        if node.name == naming.REPORT:
            _edits_seen(context, bench)
        return materialize_result(context, bench, node, update, tags)

    with _beta_is_no_concern():
        return dg.asset(
            key=asset_key(study, node.name),
            deps=[
                *(asset_key(study, name) for name in node.reads),
                *(upstream_keys(study) if reads_files else ()),  # what writes the files
            ],
            description=f"{node.method} · {node.description}" if node.method else node.description,
            group_name=study.name,
            owners=study.settings.dagster.owners,
            tags=study.settings.dagster.tags,
            kinds={*node.kinds, *([node.method] if node.method else [])},
            pool=pool if node.heavy else None,
            automation_condition=_condition(study, dg.AutomationCondition.eager()),
            code_version=code_version(study, node),
            metadata={
                STORE: dg.MetadataValue.path(f"{study.store_address}/{node.name}"),
                ARTIFACT: node.name,
            },
            io_manager_key=IO_MANAGER,
            resource_defs={IO_MANAGER: _READER},
        )(asset)


def _source_seen(context: dg.AssetExecutionContext, bench: "Workbench") -> dict[str, str]:
    """Observe the files before they are read, and say that this is the content that was read.

    Dagster by itself notes the last observation, which may be of older files, or none: the dataset
    would be out of sync with files that it has just read.
    """
    key = asset_key(bench.study, "source")
    version = content_of(bench.study, bench.made_rows)
    context.log_event(dg.AssetObservation(key, tags={DATA_VERSION_TAG: version}))
    return {f"dagster/input_data_version/{key.to_user_string()}": version}


def _edits_seen(context: dg.AssetExecutionContext, bench: "Workbench") -> None:
    """Note what became of the edits, now that everything is as new as it will be in this run."""
    if context.instance.is_ephemeral:
        return
    try:
        seen = observed(bench.study)
    except InfluenceDagError as error:  # files of people: the refresh is sound without them
        context.log.warning(f"the edits beside the store cannot be told: {error}")
        return
    if seen:
        context.log_event(seen)


def code_version(study: Study, node: Artifact) -> str:
    """Hash of the stage's formula and of the settings that the artifact's numbers depend on.

    Settings of later stages are left out, so that changing them marks only what they change.
    """
    return f"{__version__}-{fingerprint(node.name, node.formula, node.settings_of(study))[:12]}"


def _checks(study: Study, node: Artifact) -> dg.AssetChecksDefinition:
    """One op, which runs all checks of an artifact; a failed one stops what is downstream."""
    key, severity = asset_key(study, node.name), dg.AssetCheckSeverity
    specs = [
        dg.AssetCheckSpec(promise.name, asset=key, description=promise.description, blocking=True)
        for promise in node.checks
    ]

    @dg.multi_asset_check(
        name="__".join([study.name, *node.name.split("/"), "checks"]), specs=specs
    )
    def checks(context: dg.AssetCheckExecutionContext):
        from influence_dag.stages.workbench import Workbench

        bench = Workbench(study, context.log.info)
        for promise in node.checks:
            outcome = promise.outcome(bench)
            yield dg.AssetCheckResult(
                passed=outcome.passed,
                asset_key=key,
                check_name=promise.name,
                description=outcome.message,
                metadata=outcome.metadata,
                severity=severity.WARN if outcome.tolerated else severity.ERROR,
            )

    return checks
