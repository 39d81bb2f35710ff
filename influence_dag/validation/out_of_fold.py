"""What a model that has not seen a row makes of it: one refit a fold, all together."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.losses import ignored_class
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.refits import refit
from influence_dag.validation.representations import is_one_class_a_row

STEPS = 300  # of a network's fits: its ranking hardly waits for a minimum


MOST_CLASSES = 1_000  # whose probabilities are asked for, a forward pass each


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """The loss of each row where it was not seen, and there the log-probability of each class."""

    losses: Float[Array, " n"]
    classes: Float[Array, "n c"] | None


def out_of_fold(
    objective: Objective,
    rows: Rows,
    *,
    folds: int,
    weight_decay: float,
    seed: int = 0,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = STEPS,
) -> OutOfFold:
    r"""What the model fitted to the other folds, from `start` (default θ), makes of each row.

    With a cross entropy that is $-\log p$ of the row's label: low out-of-fold confidence (Northcutt
    et al. 2021) is a high one. A network has to start at initial weights: θ has seen the rows. Fits
    that miss `tolerance` in `max_steps` are taken as they are. Among rows without a label, which
    the loss leaves out, there are no probabilities: of no label it would be sure, for every row.
    """
    fold = draw_folds(len(rows), folds=folds, seed=seed)
    shares = rows.shares.cpu() * (fold != torch.arange(folds)[:, None])
    refits = refit(
        objective,
        rows,
        shares / shares.sum(dim=1, keepdim=True),
        weight_decay=weight_decay,
        start=start,
        tolerance=tolerance,
        max_steps=max_steps,
        on_failure="keep",
    )
    losses = refits.losses(rows).cpu()[fold, torch.arange(len(rows))].numpy()
    if not has_classes(rows) or unlabelled(objective, rows):
        return OutOfFold(losses, None)
    classes = rows.y.unique()
    chances = np.empty((len(rows), len(classes)))
    for member in range(folds):
        unseen = (fold == member).nonzero().flatten()
        of_fold = rows[unseen.to(rows.y.device)]
        chances[unseen.numpy()] = class_log_chances(
            objective, refits.params[member], of_fold, classes
        )
    return OutOfFold(losses, chances)


def has_classes(rows: Rows) -> bool:
    """Whether labels are classes, one a row, and not too many to ask for each."""
    return is_one_class_a_row(rows.y) and len(rows.y.unique()) <= MOST_CLASSES


def unlabelled(objective: Objective, rows: Rows) -> int:
    """How many rows have the class for a label that the loss leaves out."""
    ignored = ignored_class(objective.loss)
    if ignored is None or not isinstance(rows.y, Tensor):
        return 0
    return int((rows.y == ignored).sum())


def class_log_chances(
    objective: Objective, params: Float[Tensor, " p"], rows: Rows, classes: Int[Tensor, " c"]
) -> Float[Array, "n c"]:
    """Log-probability of each class by what the row's loss would be with it, `exp(-L)` of all.

    Finite: of a loss that is infinite (the logarithm of a probability of 0) the smallest there is.
    """
    with torch.no_grad():
        losses = [
            objective.losses(params, Rows(rows.x, torch.full_like(rows.y, int(each))))
            for each in classes
        ]
    numbers = torch.finfo(losses[0].dtype)
    chances = torch.stack(losses, dim=1).clamp(max=numbers.max).neg().log_softmax(dim=1)
    return chances.clamp(min=math.log(numbers.tiny)).numpy(force=True)


def draw_folds(n: int, *, folds: int, seed: int = 0) -> Int[Tensor, " n"]:
    """The fold of each row; sizes differ by one at most."""
    if not 2 <= folds <= n:
        raise ModelError(f"{folds} folds of {n} rows; take two or more, and at most one a row")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator) % folds
