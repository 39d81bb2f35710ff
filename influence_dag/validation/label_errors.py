r"""Wrong labels: are they found where the model leans on single rows?

A share of the labels is replaced by others, the model is fitted to what results, and training
rows are ranked by self-influence $\nabla L_i^\top (H + \lambda I)^{-1} \nabla L_i$: how much of
a row's loss is kept down by that row alone (Koh & Liang 2017, §5.4). Plain loss is the baseline.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.curvature import CURVATURES
from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Direct
from influence_dag.study.curvatures import CurvatureName
from influence_dag.validation.agreement import found_in_top, roc_auc
from influence_dag.validation.refits import OnFailure, refit


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Which labels were flipped, and the two rankings of the model that was fitted to them."""

    flipped: Bool[Array, " n"]
    labels: Int[Array, " n"]
    self_influence: Float[Array, " n"]
    loss: Float[Array, " n"]
    refits: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """ROC-AUC, and the share of flipped rows among the first 10 and 20 % of each ranking."""
        rankings = {"self_influence": self.self_influence, "loss": self.loss}
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
    labels: Tensor, *, share: float, seed: int = 0
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Labels of which `share` are another class of those that occur, and which those are.

    Raises `ModelError` unless the labels are integers of at least two classes.
    """
    classes = labels.cpu().unique()
    if labels.is_floating_point() or labels.ndim != 1 or len(classes) < 2:
        raise ModelError(
            f"labels to be flipped have to be integers of two classes or more; these are "
            f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)} with "
            f"{len(classes)} distinct values"
        )
    count, generator = round(share * len(labels)), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    step = torch.randint(1, len(classes), (count,), generator=generator)
    position = torch.searchsorted(classes, labels.cpu()[chosen])
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    flipped[chosen] = True
    other = labels.cpu().clone()
    other[chosen] = classes[(position + step) % len(classes)]
    return other.to(labels.device), flipped


def self_influences(
    objective: Objective,
    rows: Rows,
    *,
    damping: float,
    curvature: CurvatureName = "hessian",
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
) -> LabelErrors:
    """Flip `share` of the labels, fit again from `start` (default θ), rank the training rows.

    `damping` defaults to `weight_decay`. A network is best started at initial weights and ranked
    with the Gauss-Newton curvature or a larger damping: fitted to wrong labels, its Hessian is
    often indefinite (`IndefiniteError` then names a damping that would do). It also takes long to
    get to a minimum, and the ranking hardly waits for it: with `on_failure="keep"` a fit that
    misses `tolerance` is ranked as it is, its gradient's norm being in the summary.
    """
    objective, train = objective.in_float64(), train.to(dtype=torch.float64)
    labels, flipped = flip_labels(train.y, share=share, seed=seed)
    rows = Rows(train.x, labels, train.weights)
    refits = refit(
        objective,
        rows,
        rows.shares[None],
        weight_decay=weight_decay,
        start=start,
        tolerance=tolerance,
        max_steps=max_steps,
        on_failure=on_failure,
    )
    fitted = refits.member(0)
    influence = self_influences(
        fitted, rows, damping=weight_decay if damping is None else damping, curvature=curvature
    )
    losses = fitted.losses(fitted.params, rows).detach()
    return LabelErrors(
        flipped.numpy(),
        labels.numpy(force=True),
        influence.numpy(force=True),
        losses.numpy(force=True),
        refits.summary(),
    )
