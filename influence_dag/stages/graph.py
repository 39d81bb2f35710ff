"""A study's graph: which artifact is made from which, by which stage. No Dagster, no torch."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_dag.errors import StudyError
from influence_dag.stages import naming
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.wording import Wording, matrix_formula
from influence_dag.study.study import Study
from influence_dag.study.users_code import ended
from influence_dag.unchanged import ChangedError, watching

if TYPE_CHECKING:
    from influence_dag.stages.updates import Update
    from influence_dag.stages.workbench import Workbench

_TORCH, _ZARR = frozenset({"torch"}), frozenset({"zarr"})
_BOTH = _TORCH | _ZARR

TRIES = 3  # at an artifact whose code or checkpoint is edited meanwhile
VALIDATIONS = {
    "leave_one_out": "Refits without single training rows against what the influences predict.",
    "datamodels": "Linear datamodelling score: refits on subsets, predicted and found.",
    "label_errors": "Labels flipped on purpose; neighbours, loss and self-influence find them.",
}


@dataclass(frozen=True)
class Artifact:
    """One node: an artifact, everything that it reads, and the stage that makes it.

    `stage` is a module of `influence_dag.stages` with a `refresh`, imported when it runs and not
    before: describing the graph stays free of torch. `argument` is the method (or the kind of
    matrix) that this node is about.
    """

    name: str
    reads: tuple[str, ...]
    stage: str
    kinds: frozenset[str]
    description: str
    argument: str | None = None
    heavy: bool = False

    @property
    def method(self) -> str | None:
        """The method that the artifact belongs to, if it belongs to one."""
        return self.argument if self.name.startswith(f"{self.argument}/") else None

    @property
    def formula(self) -> int:
        """Version of what its stage computes."""
        return FORMULAS[self.stage]

    def refresh(self, bench: "Workbench") -> "Update":
        """Bring the artifact up to date, with code and files that stay as they are meanwhile."""
        module = importlib.import_module(f"influence_dag.stages.{self.stage}")
        changed = ""
        for _ in range(TRIES):
            try:
                with watching(), bench.at(self.name, self.reads):
                    return module.refresh(bench, *([self.argument] if self.argument else []))
            except SystemExit as error:
                raise ended(error) from error
            except ChangedError as error:
                changed = error.what
                bench.report(f"{self.name}: {error}; begun again")
        raise StudyError(
            f"{bench.study.name}/{self.name}: {changed} changed each of {TRIES} times while it was "
            "used; refresh again when it is written"
        )


def artifacts(study: Study) -> Iterator[Artifact]:
    """The nodes of a study's graph, in an order in which they can be computed."""
    methods = study.settings.methods.names
    yield Artifact(
        "dataset",
        ("source",),
        "dataset",
        _ZARR,
        "The rows of both files: checked, labelled, each with a slot and a content hash.",
    )
    yield Artifact(
        "model",
        ("dataset",),
        "model",
        _TORCH,
        "The fitted module: its state as safetensors, its trainable parameters θ as one vector.",
        heavy=True,
    )
    yield Artifact(
        "gradients",
        ("dataset", "model"),
        "gradients",
        _BOTH,
        "∇θ L(z_i, θ) of every training row, factored per layer.",
        heavy=True,
    )
    for kind in dict.fromkeys(filter(None, (matrix_of(study, method) for method in methods))):
        reads = ("dataset", "model")
        about = f"{matrix_formula(kind)}, exact, with its eigenvalues."
        yield Artifact(kind, reads, "matrices", _BOTH, about, kind, heavy=True)
    for method in methods:
        yield from _method_artifacts(study, method)
    for kind in study.settings.validation.names:
        reads = ("dataset", "model", *map(naming.influences, methods), *_solved(study, kind))
        name = f"validation/{kind}"
        yield Artifact(name, reads, "validation", _TORCH, VALIDATIONS[kind], kind, heavy=True)
    yield Artifact(
        "report",
        tuple(name(m) for name in (naming.influences, naming.summary) for m in methods),
        "report",
        _ZARR,
        "How the methods agree: relative error, Pearson, Spearman per test row.",
    )


def reads_of(study: Study, artifact: str) -> tuple[str, ...]:
    """The artifacts that one of a study is made from; its source is none."""
    reads = next(node.reads for node in artifacts(study) if node.name == artifact)
    return tuple(name for name in reads if name != "source")


def matrix_of(study: Study, method: str) -> str | None:
    """The stored matrix that a method starts from; None when it works with products alone."""
    asked = study.settings.methods[method]
    return asked.curvature if asked.uses_matrix else None


def _solved(study: Study, validation: str) -> list[str]:
    """The curvatures that a validation reads: for automatic dampings, or for exact solves."""
    if study.settings.is_auto_damped:
        return [naming.curvature(method) for method in study.settings.methods.names]
    exact = validation == "leave_one_out" and "direct" in study.settings.methods.names
    return [naming.curvature("direct")] if exact else []


def has_self_influence(study: Study, method: str) -> bool:
    """By default only where it is cheap: an iterative method needs one solve a training row."""
    wanted = study.settings.summary.self_influence
    return not study.settings.methods[method].is_iterative if wanted == "auto" else bool(wanted)


def _method_artifacts(study: Study, method: str) -> Iterator[Artifact]:
    matrix, words = matrix_of(study, method), Wording(study.settings, method)
    damped_by = None if matrix else study.settings.matrix_of_damping(method)
    curvature, factors = naming.curvature(method), naming.factors(method)
    influences = naming.influences(method)
    yield Artifact(
        curvature,
        ("dataset", "model", *filter(None, (matrix, damped_by))),
        "curvature",
        _BOTH,
        f"What `{method}` makes of the curvature once, for every solve: plain arrays.",
        method,
        heavy=True,
    )
    yield Artifact(
        factors,
        ("dataset", "model", curvature, *filter(None, (matrix,))),
        "factors",
        _BOTH,
        f"{words.factors()['formula']}, one row a test row.",
        method,
        heavy=True,
    )
    yield Artifact(
        influences,
        ("dataset", "model", curvature, factors, "gradients"),
        "influences",
        _BOTH,
        f"I[test, train] = {words.influences()['formula']}, {words.influences()['sign']}.",
        method,
        heavy=True,
    )
    if study.settings.perturbation and method in study.settings.perturbation.methods:
        yield Artifact(
            naming.perturbation(method),
            ("dataset", "model", curvature, factors),
            "perturbation",
            _BOTH,
            f"P[test, train, feature] = ∂/∂x_train of the influence on {words.what}. "
            f"Positive: more of the feature lowers it.",
            method,
            heavy=True,
        )
    yield Artifact(
        naming.summary(method),
        (
            *("dataset", "model", curvature, influences),
            *(["gradients"] if has_self_influence(study, method) else []),
        ),
        "summary",
        _ZARR,
        "Sums over rows and columns, strongest pairs of each test row, self-influence, and the "
        "loss and prediction of each row.",
        method,
    )
