"""Blocking asset checks: promises about stored arrays, kept in `influence_dag.stages.checks`."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from influence_dag.components.keys import asset_key
from influence_dag.stages import naming
from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.study.study import Study

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


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
        "How far θ is from a minimum of the penalised mean loss, which the theory assumes.",
    )
    for kind in CURVATURE_KINDS:
        if kind in artifacts:
            yield from _matrix_promises(study, kind)
    for method in study.settings.methods.names:
        if study.settings.methods[method].is_damped:
            about = "λ is of the order of the curvature's eigenvalues; a warning where it is not."
            yield Promise(
                naming.curvature(method),
                "damping_near_spectrum",
                "damping_near_spectrum",
                (method,),
                about,
            )
        yield Promise(
            naming.influences(method),
            "equals_its_parts",
            "matches_parts",
            (method,),
            "Random entries equal the product of stored factors and gradients.",
        )
    yield from _exactness_promises(study)
    if "leave_one_out" in study.settings.validation.names:
        about = "Influences predict what leaving rows out does; a warning where they do not."
        name = "validation/leave_one_out"
        yield Promise(name, "predicts_refits", "predicts_refits", (), about)


def _matrix_promises(study: Study, kind: str) -> Iterator[Promise]:
    yield Promise(kind, "symmetric", "symmetric", (kind,), "The matrix equals its transpose.")
    if study.settings.methods.direct and study.settings.methods.direct.on_indefinite == "raise":
        about = "With the damping added it has only positive eigenvalues."
        yield Promise(kind, "damped_positive_definite", "positive_definite", (kind,), about)


def _exactness_promises(study: Study) -> Iterator[Promise]:
    """Of methods that solve the whole damped system: small residuals, and agreement."""
    methods = study.settings.methods
    exact = [m for m in methods.names if methods[m].is_exact and methods[m].blocks == "full"]
    for method in exact:
        yield Promise(
            naming.factors(method),
            "residual_below_tolerance",
            "residual_below",
            (method,),
            "Every solve reached its tolerance.",
        )
    direct = methods.direct
    if direct is not None and direct.on_indefinite == "absolute":
        exact = [method for method in exact if method != "direct"]  # solves another system
    if len(exact) > 1 and len({methods[method].curvature for method in exact}) == 1:
        about = "Methods that solve the same system give the same influences."
        yield Promise("report", "methods_agree", "methods_agree", tuple(exact), about)


def check_definitions(study: Study, artifacts: list[str]) -> list[dg.AssetChecksDefinition]:
    """One op an artifact, which runs all its checks; a failed one stops what is downstream."""
    grouped: dict[str, list[Promise]] = {}
    for promise in promises(study, artifacts):
        grouped.setdefault(promise.artifact, []).append(promise)
    return [_definition(study, name, found) for name, found in grouped.items()]


def _definition(study: Study, artifact: str, found: list[Promise]) -> dg.AssetChecksDefinition:
    key = asset_key(study, artifact)
    specs = [
        dg.AssetCheckSpec(promise.name, asset=key, description=promise.description, blocking=True)
        for promise in found
    ]

    @dg.multi_asset_check(name="__".join([study.name, *artifact.split("/"), "checks"]), specs=specs)
    def checks(context: dg.AssetCheckExecutionContext):
        from influence_dag.stages.workbench import Workbench

        bench = Workbench(study, context.log.info)
        for promise in found:
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
