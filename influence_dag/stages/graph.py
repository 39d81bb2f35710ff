"""A study's graph: which artifact is made from which, by which stage. No Dagster, no torch."""

from collections.abc import Callable, Iterator
from typing import Any

from influence_dag.stages import naming
from influence_dag.stages.artifacts import Artifact, Picture, Promise
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.symbols import matrix_formula
from influence_dag.stages.wording import Wording
from influence_dag.study.study import Study

_TORCH, _ZARR = frozenset({"torch"}), frozenset({"zarr"})
_BOTH = _TORCH | _ZARR
_OF_ROWS = ("data", "compute.dtype")
_OF_MODEL = (*_OF_ROWS, "model")
_OF_METHOD = (*_OF_MODEL, "damping", "method")
_OF_METHODS = (*_OF_MODEL, "damping", "methods")
_OF_ROUNDED = (*_OF_METHOD, "store.max_relative_error")
_STAGES = {
    "dataset": (_ZARR, _OF_ROWS),
    "model": (_TORCH, _OF_MODEL),
    "gradients": (_BOTH, _OF_MODEL),
    "matrices": (_BOTH, _OF_MODEL),
    "curvature": (_BOTH, _OF_METHOD),
    "factors": (_BOTH, _OF_METHOD),
    "influences": (_BOTH, _OF_ROUNDED),
    "perturbation": (_BOTH, _OF_ROUNDED),
    "summary": (_ZARR, (*_OF_METHOD, "summary")),
    "validation": (_TORCH, _OF_METHODS),
    "report": (_ZARR, _OF_METHODS),
}
"""What each stage works with, and the settings that its numbers depend on."""
_SPECTRUM = Picture("spectrum", ("spectrum",))

VALIDATIONS = {
    "leave_one_out": (
        "Refits without single training rows against what the influences predict.",
        Picture("leave_one_out", ("agreement",)),
    ),
    "datamodels": (
        "Linear datamodelling score: refits on subsets, predicted and found.",
        Picture("datamodels", ("scores",)),
    ),
    "label_errors": (
        "Labels flipped on purpose; neighbours, loss and self-influence find them.",
        Picture("label_errors", ("detection",)),
    ),
}

Nodes = Callable[[Study], Iterator[Artifact]]
_MORE: list[Nodes] = []


def add_artifacts(nodes: Nodes) -> Callable[[], None]:
    """Let studies have more artifacts, made after all others; what is returned takes them away.

    `nodes` gives those of a study: none where it does not ask for any.
    """
    _MORE.append(nodes)
    return lambda: _MORE.remove(nodes)


def artifacts(study: Study) -> Iterator[Artifact]:
    """The nodes of a study's graph, in an order in which they can be computed."""
    methods = study.settings.methods.names
    yield from _of_rows(study)
    for kind in dict.fromkeys(filter(None, (matrix_of(study, method) for method in methods))):
        yield _matrix(study, kind)
    for method in methods:
        yield from _of_method(study, method)
    for kind in study.settings.validation.names:
        yield _validation(study, kind)
    yield _report(study)
    for nodes in _MORE:
        yield from nodes(study)


def reads_of(study: Study, artifact: str) -> tuple[str, ...]:
    """The artifacts that one of a study is made from; its source is none."""
    reads = next(node.reads for node in artifacts(study) if node.name == artifact)
    return tuple(name for name in reads if name != "source")


def matrix_of(study: Study, method: str) -> str | None:
    """The stored matrix that a method starts from; None when it works with products alone."""
    asked = study.settings.methods[method]
    return asked.curvature if asked.uses_matrix else None


def has_self_influence(study: Study, method: str) -> bool:
    """By default only where it is cheap: an iterative method needs one solve a training row."""
    wanted = study.settings.summary.self_influence
    return not study.settings.methods[method].is_iterative if wanted == "auto" else bool(wanted)


def _node(
    stage: str, name: str, reads: tuple[str, ...], about: str, *argument: str, **more: Any
) -> Artifact:
    """An artifact under the version of its stage's formula, heavy where torch makes it.

    `settings` are those that its numbers depend on besides.
    """
    kinds, settings = _STAGES[stage]
    told = about, (*settings, *more.pop("settings", ())), *argument
    heavy = "torch" in kinds
    return Artifact(name, reads, stage, FORMULAS[stage], kinds, *told, heavy=heavy, **more)


def _of_rows(study: Study) -> Iterator[Artifact]:
    about = "The rows of both files: checked, labelled, each with a slot and a content hash."
    checks = (_complete("dataset", "test", "train"),)
    yield _node("dataset", "dataset", ("source",), about, checks=checks)
    about = "How far θ is from a minimum of the penalised mean loss, which the theory assumes."
    checks = (Promise("at_a_minimum", "gradient_norm", (), about),)
    about = "The fitted module: its state as safetensors, its trainable parameters θ as one vector."
    yield _node("model", "model", ("dataset",), about, checks=checks)
    weight = "" if _weights(study) == "none" else "w_i "
    about = f"{weight}∇θ L(z_i, θ) of every training row, factored per layer."
    checks = (_complete("gradients", "train"),)
    yield _node("gradients", "gradients", ("dataset", "model"), about, checks=checks)


def _complete(name: str, *splits: str) -> Promise:
    about = "Every block is stored, every number of a row that exists is finite."
    return Promise("complete_and_finite", "complete", (name, *splits), about)


def _weights(study: Study) -> str:
    return study.settings.data.weight or "none"


def _words(study: Study, method: str) -> Wording:
    return Wording(study.settings, method, _weights(study))


def _matrix(study: Study, kind: str) -> Artifact:
    about = "The matrix equals its transpose."
    checks = [Promise("symmetric", "symmetric", (kind,), about)]
    direct = study.settings.methods.direct
    is_whole = direct and direct.blocks == "full"  # else blocks have λ of their own
    if direct and is_whole and direct.curvature == kind and direct.on_indefinite == "raise":
        about = "With the damping added it has only positive eigenvalues."
        checks.append(Promise("damped_positive_definite", "positive_definite", (kind,), about))
    about = f"{matrix_formula(kind, _weights(study))}, exact, with its eigenvalues."
    told = ("dataset", "model"), about, kind
    return _node("matrices", kind, *told, checks=tuple(checks), picture=_SPECTRUM)


def _of_method(study: Study, method: str) -> Iterator[Artifact]:
    yield _curvature(study, method)
    yield _factors(study, method)
    yield _influences(study, method)
    if study.settings.perturbation and method in study.settings.perturbation.methods:
        yield _perturbation(study, method)
    yield _summary(study, method)


def _curvature(study: Study, method: str) -> Artifact:
    matrix, damped = matrix_of(study, method), study.settings.methods[method].is_damped
    damped_by = None if matrix else study.settings.matrix_of_damping(method)
    about = "λ is of the order of the curvature's eigenvalues; a warning where it is not."
    near = Promise("damping_near_spectrum", "damping_near_spectrum", (method,), about)
    return _node(
        "curvature",
        naming.curvature(method),
        ("dataset", "model", *filter(None, (matrix, damped_by))),
        f"What `{method}` makes of the curvature once, for every solve: plain arrays.",
        method,
        checks=(near,) if damped else (),
        picture=_SPECTRUM,
    )


def _factors(study: Study, method: str) -> Artifact:
    name, matrix = naming.factors(method), matrix_of(study, method)
    checks = [_complete(name, "test")]
    if method in _exact(study):
        about = "Every solve reached its tolerance."
        checks.append(Promise("residual_below_tolerance", "residual_below", (method,), about))
    return _node(
        "factors",
        name,
        ("dataset", "model", naming.curvature(method), *filter(None, (matrix,))),
        f"{_words(study, method).factors()['formula']}, one row a test row.",
        method,
        checks=tuple(checks),
        picture=Picture("convergence", ("convergence", "residuals")),
    )


def _influences(study: Study, method: str) -> Artifact:
    name, words = naming.influences(method), _words(study, method).influences()
    about = "Random entries equal the product of stored factors and gradients."
    parts = Promise("equals_its_parts", "matches_parts", (method,), about)
    read = (naming.curvature(method), naming.factors(method), "gradients")
    return _node(
        "influences",
        name,
        ("dataset", "model", *read),
        f"I[test, train] = {words['formula']}, {words['sign']}.",
        method,
        checks=(_complete(name, "test", "train"), parts),
        picture=Picture("influences", ("histogram",)),
    )


def _perturbation(study: Study, method: str) -> Artifact:
    name, words = naming.perturbation(method), _words(study, method)
    asked, less = study.settings.perturbation, ("wrt", "reduce", "pairs")
    forms = tuple(f"perturbation.{each}" for each in less if getattr(asked, each))
    return _node(
        "perturbation",
        name,
        ("dataset", "model", naming.curvature(method), naming.factors(method)),
        f"P[test, train, feature] = ∂/∂x_train of the influence on {words.what}. "
        f"Positive: more of the feature lowers it.",
        method,
        settings=forms,
        checks=(_complete(name, "test", "train"),),
        picture=Picture("perturbation", ("example",)),
    )


def _summary(study: Study, method: str) -> Artifact:
    gradients = ["gradients"] if has_self_influence(study, method) else []
    read = (naming.curvature(method), naming.influences(method), *gradients)
    return _node(
        "summary",
        naming.summary(method),
        ("dataset", "model", *read),
        "Sums over rows and columns, strongest pairs of each test row, self-influence, and the "
        "loss and prediction of each row.",
        method,
        picture=Picture("summary", ("strongest",)),
    )


def _validation(study: Study, kind: str) -> Artifact:
    name, (about, picture) = naming.validation(kind), VALIDATIONS[kind]
    checks = []
    if kind == "leave_one_out":
        said = "Influences predict what leaving rows out does; a warning where they do not."
        checks.append(Promise("predicts_refits", "predicts_refits", (), said))
    influences = map(naming.influences, study.settings.methods.names)
    told = ("dataset", "model", *influences, *_solved(study, kind)), about, kind
    shown = {"checks": tuple(checks), "picture": picture, "settings": (f"validation.{kind}",)}
    return _node("validation", name, *told, **shown)


def _solved(study: Study, validation: str) -> list[str]:
    """The curvatures that a validation reads: for automatic dampings, or for exact solves."""
    if study.settings.is_auto_damped:
        return [naming.curvature(method) for method in study.settings.methods.names]
    exact = validation == "leave_one_out" and "direct" in study.settings.methods.names
    return [naming.curvature("direct")] if exact else []


def _report(study: Study) -> Artifact:
    methods, exact, checks = study.settings.methods, _exact(study), []
    if methods.direct is not None and methods.direct.on_indefinite == "absolute":
        exact = [method for method in exact if method != "direct"]  # solves another system
    if len(exact) > 1 and len({methods[method].curvature for method in exact}) == 1:
        about = "Methods that solve the same system give the same influences."
        checks.append(Promise("methods_agree", "methods_agree", tuple(exact), about))
    of_methods = [name(m) for name in (naming.influences, naming.summary) for m in methods.names]
    return _node(
        "report",
        naming.REPORT,
        (*of_methods, *map(naming.validation, study.settings.validation.names)),
        "What was measured, and whether to trust the influences; how the methods agree.",
        checks=tuple(checks),
        picture=Picture("report", ("verdict", "measured", "agreement", "strength")),
    )


def _exact(study: Study) -> list[str]:
    """Methods that solve the whole damped system."""
    methods = study.settings.methods
    return [m for m in methods.names if methods[m].is_exact and methods[m].blocks == "full"]
