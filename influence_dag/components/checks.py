"""Blocking asset checks: promises about stored arrays, kept in `influence_dag.stages.checks`."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from influence_dag.study import Study


@dataclass(frozen=True)
class Promise:
    """A check of one artifact: a function of `influence_dag.stages.checks` and its arguments."""

    artifact: str
    name: str
    function: str
    arguments: tuple[str, ...]
    description: str

    def outcome(self, bench):
        from influence_dag.stages import checks

        function = getattr(checks, self.function)
        return (function(*self.arguments) if self.arguments else function)(bench)


def promises(study: Study, artifacts: list[str]) -> Iterator[Promise]:
    """Every promise of a study."""
    for name in artifacts:
        axes = {
            "dataset": ("test", "train"),
            "gradients": ("train",),
            "influence_factors": ("test",),
            "influences": ("test", "train"),
            "perturbation_influences": ("test", "train"),
        }
        splits = axes.get(name.rpartition("/")[2])
        if splits:
            yield Promise(
                name,
                "complete_and_finite",
                "complete",
                (name, *splits),
                "Every block is stored, every number of a row that exists is finite.",
            )
    yield Promise(
        "model",
        "at_a_minimum",
        "gradient_norm",
        (),
        "The gradient of the penalised mean loss is small enough for the theory.",
    )
    if "hessian" in artifacts:
        yield Promise("hessian", "symmetric", "symmetric", (), "H equals its transpose.")
        yield Promise(
            "hessian",
            "damped_positive_definite",
            "positive_definite",
            (),
            "H + λI has only positive eigenvalues.",
        )
    for method in study.settings.methods.names:
        yield Promise(
            f"{method}/influence_factors",
            "residual_below_tolerance",
            "residual_below",
            (method,),
            "Every solve reached its tolerance.",
        )
        yield Promise(
            f"{method}/influences",
            "equals_its_parts",
            "matches_parts",
            (method,),
            "Random entries equal the product of stored factors and gradients.",
        )
    if len(study.settings.methods.names) > 1:
        yield Promise(
            "report",
            "methods_agree",
            "methods_agree",
            (),
            "Methods that solve the same system give the same influences.",
        )


def check_definitions(study: Study, artifacts: list[str]) -> list[dg.AssetChecksDefinition]:
    """One op an artifact, which runs all its checks; a failed one stops what is downstream."""
    grouped: dict[str, list[Promise]] = {}
    for promise in promises(study, artifacts):
        grouped.setdefault(promise.artifact, []).append(promise)
    return [_definition(study, name, found) for name, found in grouped.items()]


def _definition(study: Study, artifact: str, found: list[Promise]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([study.name, *artifact.split("/")])
    specs = [
        dg.AssetCheckSpec(promise.name, asset=key, description=promise.description, blocking=True)
        for promise in found
    ]

    @dg.multi_asset_check(name="__".join([study.name, *artifact.split("/"), "checks"]), specs=specs)
    def checks(context: dg.AssetCheckExecutionContext):
        from influence_dag.stages.base import Workbench

        bench = Workbench(study, context.log.info)
        for promise in found:
            outcome = promise.outcome(bench)
            yield dg.AssetCheckResult(
                passed=outcome.passed,
                asset_key=key,
                check_name=promise.name,
                description=outcome.message,
                metadata=outcome.metadata,
            )

    return checks
