r"""Wrong labels: are they found where the model leans on single rows?

A share of the labels is replaced by others, the model is fitted to what results, and training
rows are ranked by self-influence $\nabla L_i^\top (H + \lambda I)^{-1} \nabla L_i$: how much of
a row's loss is kept down by that row alone (Koh & Liang 2017, §5.4). Beside it stand the plain
loss, the loss under a model that has not seen the row, what the nearest other rows say, the
KNN-Shapley value, and a combination.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.curvature import CURVATURES
from influence_dag.errors import ModelError, check_known
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.losses import ignored_class
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct
from influence_dag.structures import described
from influence_dag.study.method_base import CurvatureName
from influence_dag.suspicion import (
    NEIGHBOURS,
    Evidence,
    Space,
    combined_suspicion,
    knn_shapley,
    neighbour_disagreement,
    votes,
)
from influence_dag.validation.agreement import found_in_top, roc_auc
from influence_dag.validation.out_of_fold import (
    OutOfFold,
    class_log_chances,
    has_classes,
    out_of_fold,
    unlabelled,
)
from influence_dag.validation.refits import OnFailure, refit
from influence_dag.validation.representations import is_one_class_a_row, representations


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Which labels were flipped, and what is said of each row after a fit to them.

    The later ones are None where they were not asked for, or rows have no neighbours.
    """

    flipped: Bool[Array, " n"]
    labels: Int[Array, " n"]
    self_influence: Float[Array, " n"]
    loss: Float[Array, " n"]
    refits: dict[str, Any] = field(default_factory=dict)
    out_of_fold_loss: Float[Array, " n"] | None = None
    neighbour_disagreement: Float[Array, " n"] | None = None
    knn_shapley: Float[Array, " n"] | None = None
    evidence: Evidence | None = None

    @property
    def combined(self) -> Float[Array, " n"]:
        """What two views of the row say together; see `combined_suspicion`."""
        return combined_suspicion(self.rankings, self.evidence)

    @property
    def rankings(self) -> dict[str, Float[Array, " n"]]:
        """What each says by itself, large where the label is suspect."""
        value = self.knn_shapley
        rankings = {
            "self_influence": self.self_influence,
            "loss": self.loss,
            "out_of_fold_loss": self.out_of_fold_loss,
            "neighbour_disagreement": self.neighbour_disagreement,
            "knn_shapley": None if value is None else -value,
        }
        return {name: values for name, values in rankings.items() if values is not None}

    def summary(self) -> dict[str, Any]:
        """ROC-AUC, and the share of flipped rows among the first 10 and 20 % of each ranking."""
        rankings = self.rankings | {"combined": self.combined}
        return {
            "flipped": int(self.flipped.sum()),
            "train_rows": len(self.flipped),
            **{
                name: {
                    "auc": roc_auc(scores, self.flipped),
                    "found_in_top_10_percent": found_in_top(scores, self.flipped, share=0.1),
                    "found_in_top_20_percent": found_in_top(scores, self.flipped, share=0.2),
                }
                for name, scores in rankings.items()
            },
            **self.refits,
        }


def flip_labels(
    labels: Tensor, *, share: float, seed: int = 0, mistaken: Mapping[int, int] | None = None
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Labels of which `share` are another class of those that occur, and which those are.

    Which class is drawn, or is the one that `mistaken` says people take each class for.

    Raises `ModelError` unless the labels are integers of at least two classes, and for a share that
    flips none of them, or all.
    """
    classes = labels.cpu().unique() if is_one_class_a_row(labels) else torch.empty(0)
    if len(classes) < 2:
        kinds = f" with {len(classes)} distinct value" if len(classes) else ""
        raise ModelError(
            "labels to be flipped have to be integers of two classes or more, one a row; these "
            f"are {described(labels)}{kinds}"
        )
    count = round(share * len(labels)) if math.isfinite(share) else 0
    generator = torch.Generator().manual_seed(seed)
    if not 0 < count < len(labels):
        raise ModelError(
            f"share={share:g} flips {count} of {len(labels)} labels, and to be found among others "
            "some have to be, and some not; take another share"
        )
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    step = torch.randint(1, len(classes), (count,), generator=generator)
    position = torch.searchsorted(classes, labels.cpu()[chosen])
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    flipped[chosen] = True
    other = labels.cpu().clone()
    other[chosen] = classes[(position + step) % len(classes)]
    if mistaken is not None:
        if any(mistaken.get(int(each), int(each)) == int(each) for each in classes):
            raise ModelError(
                f"mistaken names another class for each of {classes.tolist()}; it is {mistaken}"
            )
        other[chosen] = torch.tensor([mistaken[int(label)] for label in labels[chosen]])
    return other.to(labels.device), flipped


def self_influences(
    objective: Objective, rows: Rows, *, damping: float, curvature: CurvatureName = "hessian"
) -> Float[Tensor, " n"]:
    r"""$\nabla L(z_i)^\top (H + \lambda I)^{-1} w_i \nabla L(z_i)$ of each row, exactly solved."""
    matrix = CURVATURES[curvature](objective, rows)
    gradients = per_sample_gradients(objective, rows.unweighted).dense()
    solved = Direct(damping=damping).factorize(matrix).solve(gradients, damping=damping).x
    return rows.weighted((solved * gradients).sum(dim=1))


def label_errors(
    objective: Objective,
    train: Rows,
    *,
    weight_decay: float,
    damping: float | None = None,
    share: float = 0.1,
    seed: int = 0,
    curvature: CurvatureName = "hessian",
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
    on_failure: OnFailure = "raise",
    test: Rows | None = None,
    neighbours: int = NEIGHBOURS,
    space: Space = "auto",
    folds: int = 5,
    mistaken: Mapping[int, int] | None = None,
) -> LabelErrors:
    """Flip `share` of the labels, fit again from `start` (default θ), rank the training rows.

    `damping` defaults to `weight_decay`. A network is best started at initial weights and ranked
    with the Gauss-Newton curvature or a larger damping: fitted to wrong labels, its Hessian is
    often indefinite (`IndefiniteError` then names a damping that would do). It also takes long to
    get to a minimum, and the ranking hardly waits for it: with `on_failure="keep"` a fit that
    misses `tolerance` is ranked as it is, its gradient's norm being in the summary.

    `neighbours` (0: none) are looked for in `space`: the inputs, or what the fitted model's last
    linear layer takes of them; `auto` is the inputs where they are one array of real numbers. With
    `test` rows, whose labels stay, there are KNN-Shapley values too. `folds` (0: none) models that
    have not seen the rows of a fold say how hard their labels are to believe. `mistaken` as in
    `flip_labels`.

    Raises `ModelError` as `flip_labels` does, and for rows without a label.
    """
    check_known("space", space, get_args(Space))
    check_known("curvature", curvature, CURVATURES)
    if neighbours < 0:
        raise ModelError(f"neighbours={neighbours}; take 0 (none) or more")
    if not neighbours and space != "auto":
        raise ModelError(f"space={space!r} is where neighbours are looked for, and neighbours=0")
    objective, train = objective.in_float64(), train.to(dtype=torch.float64)
    if without := unlabelled(objective, train):
        raise ModelError(
            f"{without} of {len(train)} training rows have no label (the class that the loss "
            "leaves out): it would be flipped as any other; leave these rows out, they have no "
            "influence"
        )
    labels, flipped = flip_labels(train.y, share=share, seed=seed, mistaken=mistaken)
    rows = Rows(train.x, labels, train.weights)
    fits = {"weight_decay": weight_decay, "start": start, "tolerance": tolerance}
    refits = refit(
        objective, rows, rows.shares[None], max_steps=max_steps, on_failure=on_failure, **fits
    )
    fitted = refits.member(0)
    influence = self_influences(
        fitted, rows, damping=weight_decay if damping is None else damping, curvature=curvature
    )
    unseen = out_of_fold(objective, rows, folds=folds, seed=seed, **fits) if folds else None
    beside = None if test is None else _labelled(objective, test.to(dtype=torch.float64))
    disagreement, values, evidence = _by_neighbours(fitted, rows, beside, space, neighbours, unseen)
    return LabelErrors(
        flipped.numpy(),
        labels.numpy(force=True),
        influence.numpy(force=True),
        fitted.losses(fitted.params, rows).detach().numpy(force=True),
        refits.summary(),
        None if unseen is None else unseen.losses,
        disagreement,
        values,
        evidence,
    )


def _labelled(objective: Objective, rows: Rows) -> Rows | None:
    """Those of which neighbours can be right or wrong."""
    ignored = ignored_class(objective.loss)
    if ignored is None or not isinstance(rows.y, Tensor) or rows.y.ndim != 1:
        return rows
    kept = (rows.y != ignored).nonzero().flatten()
    return rows[kept] if len(kept) else None


def points_of(objective: Objective, rows: Rows, space: Space) -> Float[Array, "n d"] | None:
    """The rows as points among which neighbours are looked for; None where they are none."""
    plain = isinstance(rows.x, Tensor) and rows.x.is_floating_point()
    if space == "input" and not plain:
        raise ModelError(
            "neighbours in input space need inputs that are one array of real numbers; "
            "take space='penultimate'"
        )
    if plain and space != "penultimate":
        return rows.x.reshape(len(rows), -1).numpy(force=True)
    points = representations(objective, rows)
    if points is None and space == "penultimate":
        raise ModelError(
            "the outputs are of no linear layer that takes one vector a row, so that there is no "
            "penultimate space; take space='input', or neighbours=0"
        )
    return None if points is None else points.numpy(force=True)


def _by_neighbours(
    fitted: Objective, rows: Rows, test: Rows | None, space: Space, k: int, unseen: OutOfFold | None
) -> tuple[Float[Array, " n"] | None, Float[Array, " n"] | None, Evidence | None]:
    """Disagreement of the neighbours, KNN-Shapley values, and what classes the rows seem to be."""
    points = points_of(fitted, rows, space) if k else None
    if points is None:
        return None, None, None
    labels = rows.y.numpy(force=True)
    disagreement = neighbour_disagreement(points, labels, k=k)
    beside = None if test is None else points_of(fitted, test, space)
    by_class = None if unseen is None else unseen.classes
    if test is None or beside is None:
        said = votes(points, labels, k=k)
        return disagreement, None, said and said.evidence(None, by_class)
    truth = test.y.numpy(force=True)
    said = votes(points, labels, beside, truth, k=k)
    right = _is_right(fitted, test, rows) if has_classes(rows) else None
    return (
        disagreement,
        knn_shapley(points, labels, beside, truth, k=k),
        said and said.evidence(right, by_class),
    )


def _is_right(fitted: Objective, test: Rows, rows: Rows) -> Bool[Array, " t"]:
    """Whether each test row's likeliest class is its own."""
    classes = rows.y.unique()
    chances = class_log_chances(fitted, fitted.params, test, classes)
    return classes.numpy(force=True)[chances.argmax(axis=1)] == test.y.numpy(force=True)
