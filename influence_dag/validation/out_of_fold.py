"""What a model that has not seen a row makes of it: one refit a fold, all together."""

import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.refits import refit

STEPS = 300  # of a network's fits: its ranking hardly waits for a minimum


def out_of_fold_losses(
    objective: Objective,
    rows: Rows,
    *,
    folds: int,
    weight_decay: float,
    seed: int = 0,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = STEPS,
) -> Float[Array, " n"]:
    r"""The loss of each row under the model fitted to the other folds, from `start` (default θ).

    With a cross entropy that is $-\log p$ of the row's label: low out-of-fold confidence (Northcutt
    et al. 2021) is a high one. A network has to start at initial weights: θ has seen the rows. Fits
    that miss `tolerance` in `max_steps` are taken as they are.
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
    losses = refits.losses(rows).cpu()
    return losses[fold, torch.arange(len(rows))].numpy()


def draw_folds(n: int, *, folds: int, seed: int = 0) -> Int[Tensor, " n"]:
    """The fold of each row; sizes differ by one at most."""
    if not 2 <= folds <= n:
        raise ModelError(f"{folds} folds of {n} rows; take two or more, and at most one a row")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator) % folds
