"""Blocking asset checks: what the graph promises of stored arrays."""

import dagster as dg

from influence_dag.components.keys import asset_key
from influence_dag.stages.artifacts import Artifact
from influence_dag.study.study import Study

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def check_definitions(study: Study, nodes: list[Artifact]) -> list[dg.AssetChecksDefinition]:
    """One op an artifact, which runs all its checks; a failed one stops what is downstream."""
    return [_definition(study, node) for node in nodes if node.checks]


def _definition(study: Study, node: Artifact) -> dg.AssetChecksDefinition:
    key = asset_key(study, node.name)
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
                severity=WARN if outcome.tolerated else ERROR,
            )

    return checks
