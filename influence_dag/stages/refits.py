"""Refits of a study against what its influences predict, as arrays to be stored."""

import numpy as np
import torch

from influence_dag.datasets.slots import natural_ids
from influence_dag.errors import IndefiniteError, StudyError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Factorization
from influence_dag.stages import dampings, naming
from influence_dag.stages.amounts import are_amounts, refuse_amounts
from influence_dag.stages.driver import Result, Whole
from influence_dag.stages.methods import (
    check_curvature,
    check_of_now,
    curvature_key,
    load_factorization,
)
from influence_dag.stages.reading import load_objective, load_rows
from influence_dag.stages.refit_starts import built, initial, is_checkpoint, subset_starts
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate
from influence_dag.suspicion import SUSPICIONS
from influence_dag.validation.candidates import gradient_candidates, representation_candidates
from influence_dag.validation.datamodels import datamodels
from influence_dag.validation.label_errors import label_errors
from influence_dag.validation.leave_one_out import MOST_BYTES, leave_one_out
from influence_dag.validation.out_of_fold import OutOfFold, out_of_fold

LARGEST_EXACT = 4000  # parameters up to which exact curvatures stand beside the methods
STATIONARY, MOST_STEPS = 1e-4, 3000  # gradient norm at which fits from initial weights may end

STRING = np.dtypes.StringDType()


def produced(bench: Workbench, kind: str) -> Whole:
    """Predictions, outcomes and their agreement, as the study asks for them."""
    return _KINDS[kind](bench, getattr(bench.settings.validation, kind))


def _methods(bench: Workbench) -> tuple[str, ...]:
    return bench.settings.methods.names


def _loaded(bench: Workbench) -> tuple[Objective, Rows, Rows]:
    """The objective and both splits in float64: refits are compared to many digits."""
    axes = (bench.axis("dataset", split) for split in ("train", "test"))
    train, test = (load_rows(bench, axis, dtype=torch.float64) for axis in axes)
    return load_objective(bench, dtype=torch.float64), train, test


def _weight_decay(bench: Workbench, method: str | None = None) -> float:
    """The L2 term of the refits: the fit's own, else the damping that stands for it."""
    if fit := bench.settings.model.own_fit:
        return fit.weight_decay
    damped = [each for each in _methods(bench) if bench.settings.methods[each].is_damped]
    named = method if method in damped else next(iter(damped), _methods(bench)[0])
    return min(_dampings(bench, named))


def _dampings(bench: Workbench, method: str) -> tuple[float, ...]:
    """The λ of a method; `StudyError` for an automatic one that a curvature of another θ has."""
    if bench.settings.is_auto_damped:
        check_curvature(bench, method)
    return dampings.of_method(bench, method)


_PROXIMAL = {
    "refits_minimise": (
        "the mean loss less its slope at the given θ, plus (λ/2)‖θ' − θ‖² (Bae et al. 2022)"
    ),
    "refits_are_worth": (
        "how far the linear prediction holds around the given θ, which has seen every row; not "
        "what training without the rows would find (fit: {…} or {from: checkpoint} asks for that)"
    ),
}


def _stored(bench: Workbench, method: str, place: int) -> torch.Tensor:
    """A method's stored influences `(test, train)` without holes, float64.

    Raises `StudyError` where they are of other rows than the refits, or of another θ.
    """
    artifact, theta = naming.influences(method), bench.require(naming.MODEL).data_version
    check_of_now(bench, artifact, "model_data_version", theta)
    version = bench.require(artifact)
    test, train = bench.axis_of(version, "test"), bench.axis_of(version, "train")
    for axis in (test, train):
        if axis.fingerprint != bench.axis("dataset", axis.name).fingerprint:
            raise StudyError(
                f"{bench.study.name}/{artifact} has other {axis.name} rows than the dataset, on "
                "which models are fitted again; materialise it first"
            )
    values = dampings.at(version, "influences", place).astype(np.float64)
    return torch.from_numpy(values[test.valid][:, train.valid])


def _ids(bench: Workbench, split) -> np.ndarray:
    axis = bench.axis("dataset", split)
    return natural_ids(axis.ids[axis.slots])


def _leave_one_out(bench: Workbench, settings) -> Whole:
    objective, train, test = _loaded(bench)
    generator = torch.Generator().manual_seed(settings.seed)
    count = min(settings.rows, len(train))
    chosen = torch.randperm(len(train), generator=generator)[:count].numpy()
    index = torch.from_numpy(np.sort(bench.axis("dataset", "train").drawn[chosen]))
    method = settings.method or _methods(bench)[0]
    known = _dampings(bench, method)
    decay, given = _weight_decay(bench, method), bench.settings.model.is_given
    nearest = int(np.abs(np.array(known) - decay).argmin())
    refits = leave_one_out(
        objective,
        train,
        test,
        weight_decay=decay,
        index=index,
        influences=_stored(bench, method, nearest),
        factorization=_exact_factor(bench, objective.size, decay),
        tolerance=settings.tolerance,
        max_steps=settings.max_steps,
        proximal=given,
    )
    dims = ("test", "left_out")
    formula = f"+I / {wording_of(bench, method).count}"
    judged = f"{method} at λ = {known[nearest]:g}"
    what = "measurement" if bench.settings.model.measurement else "loss"
    arrays: dict[str, Result] = {
        "predicted": (dims, refits.predicted, {"formula": formula, "long_name": judged}),
        "actual": (dims, refits.actual, {"long_name": f"change of the test {what} after a refit"}),
    }
    if refits.corrected is not None:
        told = f"exact, with leverage, at λ = {decay:g}"
        arrays["corrected"] = (dims, refits.corrected, {"long_name": told})
    coordinates = (
        Coordinate("test", ("test",), _ids(bench, "test")),
        Coordinate("left_out", ("left_out",), _ids(bench, "train")[refits.index]),
    )
    start = "at the given θ" if given else "at θ, the fit to all rows"
    attributes = bench.attributes(method=method, refits_start=start, **(_PROXIMAL if given else {}))
    return Whole(arrays, attributes, refits.summary(), coordinates)


def _exact_factor(bench: Workbench, size: int, damping: float) -> Factorization | None:
    """The factor of H + λI that `direct` keeps, where H is too large to make one anew."""
    direct = bench.settings.methods.direct
    if 8 * size**2 <= MOST_BYTES or direct is None:
        return None
    if direct.curvature != "hessian" or direct.blocks != "full" or direct.on_indefinite != "raise":
        return None
    if damping not in _dampings(bench, "direct"):
        return None
    seen, train = bench.require(naming.curvature("direct")).attrs, bench.axis("dataset", "train")
    if seen["train_rows"] != train.fingerprint:  # a pinned one is not of these rows
        return None
    if seen["settings_key"] != curvature_key(bench, "direct"):  # nor one left behind of this θ
        return None
    return load_factorization(bench, "direct")


def _datamodels(bench: Workbench, settings) -> Whole:
    objective, train, test = _loaded(bench)
    order = bench.axis("dataset", "train").drawn
    start, told = subset_starts(bench, settings)
    candidates = _candidates(bench, objective, train, test, settings.dampings)
    made = datamodels(
        objective,
        train[torch.from_numpy(order)],
        test,
        weight_decay=_weight_decay(bench),
        candidates={
            name: {damping: values[:, order] for damping, values in by_damping.items()}
            for name, by_damping in candidates.items()
        },
        fraction=settings.fraction,
        count=settings.count,
        seeds=(settings.seed, settings.seed + 1),
        start=start,
        tolerance=STATIONARY,
        max_steps=MOST_STEPS,
        on_failure="keep",
        proximal=is_checkpoint(bench),
    )
    per_test = np.stack([score.per_test for score in made.scores.values()])
    what = "measurement" if bench.settings.model.measurement else "loss"
    arrays: dict[str, Result] = {
        "lds": (("candidate", "test"), per_test, {"long_name": "Spearman over subsets"}),
        "found": (("subset", "test"), made.fits.values, {"long_name": f"{what} after the refit"}),
        "membership": (("subset", "train"), made.fits.membership.numpy()[:, order.argsort()], {}),
    }
    coordinates = (
        Coordinate("candidate", ("candidate",), np.array(list(made.scores), STRING)),
        Coordinate("test", ("test",), _ids(bench, "test")),
        Coordinate("train", ("train",), _ids(bench, "train")),
    )
    chosen = "not chosen" if made.chosen_on is None else f"subsets drawn from seed {settings.seed}"
    attributes = bench.attributes(
        refits_start=told,
        dampings_chosen_on=chosen,
        scored_on=f"subsets drawn from seed {settings.seed + 1}",
        **(_PROXIMAL if is_checkpoint(bench) else {}),
    )
    return Whole(arrays, attributes, made.summary(), coordinates)


def _candidates(
    bench: Workbench, objective: Objective, train: Rows, test: Rows, asked: tuple[float, ...]
) -> dict[str, dict[float | None, torch.Tensor]]:
    """Influences of each method at each λ, and beside them exact solves and baselines."""
    methods, asked_of = _methods(bench), bench.settings.methods
    known = {m: _dampings(bench, m) if asked_of[m].is_damped else (None,) for m in methods}
    stored: dict[str, dict[float | None, torch.Tensor]] = {
        method: {d: _stored(bench, method, k) for k, d in enumerate(known[method])}
        for method in methods
    }
    alike = representation_candidates(
        objective, train, test, of_amounts=are_amounts(bench, objective, train)
    )
    if objective.size > LARGEST_EXACT:
        return stored | alike
    every = asked or {damping for each in known.values() for damping in each if damping is not None}
    every = every or {_weight_decay(bench)}  # beside identity alone, which has no λ
    return stored | _exact(bench, objective, train, test, tuple(sorted(every))) | alike


def _exact(
    bench: Workbench, objective: Objective, train: Rows, test: Rows, dampings: tuple[float, ...]
) -> dict:
    """Exact solves under three curvatures, where H + λI allows them."""
    try:
        return gradient_candidates(objective, train, test, dampings)
    except IndefiniteError as error:
        bench.report(f"no exact solves beside the methods: {error}")
        return {}


def _label_errors(bench: Workbench, settings) -> Whole:
    objective, train, test = _loaded(bench)
    refuse_amounts(bench, objective, train)
    order = bench.axis("dataset", "train").drawn
    ranked = label_errors(
        objective,
        train[torch.from_numpy(order)],
        weight_decay=_weight_decay(bench),
        damping=min(_dampings(bench, _methods(bench)[0])) or None,
        share=settings.share,
        seed=settings.seed,
        curvature=settings.curvature,
        start=initial(bench)[0],
        tolerance=STATIONARY,
        max_steps=MOST_STEPS,
        on_failure="keep",
        test=test,
        neighbours=settings.neighbours,
        space=settings.space,
        folds=settings.folds,
    )
    rankings = ranked.rankings | {"combined": ranked.combined}
    if ranked.knn_shapley is not None:
        rankings["knn_shapley"] = ranked.knn_shapley
    said = {name: f"{SUSPICIONS[name]}, after flipping labels" for name in rankings}
    said["flipped"] = "whether its label was flipped"
    arrays: dict[str, Result] = {
        name: (("train",), values[order.argsort()], {"long_name": said[name]})
        for name, values in (rankings | {"flipped": ranked.flipped}).items()
    }
    coordinates = (Coordinate("train", ("train",), _ids(bench, "train")),)
    attributes = bench.attributes(curvature=settings.curvature, refits_start=built(bench))
    return Whole(arrays, attributes, ranked.summary(), coordinates)


def unseen(bench: Workbench, folds: int) -> OutOfFold:
    """What a model that has not seen its fold makes of each training row, by slot.

    Fitted as subsets of the data model artifacts are, from what `model.build` makes.
    """
    if is_checkpoint(bench):
        raise StudyError(
            "out-of-fold losses need models that have not seen a row, and of a given checkpoint no "
            "start is known; leave folds away, or give the study a fit"
        )
    objective, train, _ = _loaded(bench)
    order = bench.axis("dataset", "train").drawn
    found = out_of_fold(
        objective,
        train[torch.from_numpy(order)],
        folds=folds,
        weight_decay=_weight_decay(bench),
        start=initial(bench)[0],
        tolerance=STATIONARY,
    )
    classes = None if found.classes is None else found.classes[order.argsort()]
    return OutOfFold(found.losses[order.argsort()], classes)


_KINDS = {"leave_one_out": _leave_one_out, "datamodels": _datamodels, "label_errors": _label_errors}
