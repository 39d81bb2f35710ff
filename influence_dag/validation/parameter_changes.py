r"""Parameter influences against refits: where θ goes when a training row is left out.

$$ \theta_{-i} - \theta \approx + \frac1n (H + \lambda I)^{-1} \nabla L(z_i) $$
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.agreement import mean_of_known
from influence_dag.validation.predictions import ExactPredictions
from influence_dag.validation.refits import Ending, positions_of, refit_without


@dataclass(frozen=True, eq=False)
class ParameterChanges:
    """Predicted and actual change of θ for each training row left out, in float64."""

    index: Int[Array, " m"]
    predicted: Float[Array, "m p"]
    actual: Float[Array, "m p"]
    refits: dict[str, Any] = field(default_factory=dict)

    @property
    def cosines(self) -> Float[Array, " m"]:
        """Cosine between the two; NaN where nothing moved."""
        norms = np.linalg.norm(self.predicted, axis=1) * np.linalg.norm(self.actual, axis=1)
        with np.errstate(invalid="ignore"):
            return (self.predicted * self.actual).sum(axis=1) / norms

    @property
    def length_ratios(self) -> Float[Array, " m"]:
        """Actual length of the move, divided by the predicted; NaN where none was predicted."""
        actual, predicted = (np.linalg.norm(each, axis=1) for each in (self.actual, self.predicted))
        return np.divide(actual, predicted, out=np.full_like(actual, np.nan), where=predicted > 0)

    def summary(self) -> dict[str, Any]:
        return {
            "rows_left_out": len(self.index),
            "mean_cosine": mean_of_known(self.cosines),
            "worst_cosine": float(np.fmin.reduce(self.cosines)),
            "mean_length_ratio": mean_of_known(self.length_ratios),
            **self.refits,
        }


def parameter_changes(
    objective: Objective,
    train: Rows,
    *,
    weight_decay: float,
    damping: float | None = None,
    index: Sequence[int] | Int[Tensor, " m"] | None = None,
    **ending: Unpack[Ending],
) -> ParameterChanges:
    """Leave out each training row of `index` (default: every one) and see where θ goes.

    `damping` defaults to `weight_decay`. `tolerance`, `max_steps` and `proximal` as in `refit`,
    which raises `NotConvergedError`.
    """
    objective, train = objective.in_float64(), train.to(dtype=torch.float64)
    chosen = positions_of(index, len(train))
    exact = ExactPredictions(objective, train, damping=weight_decay if damping is None else damping)
    predicted = exact.solve(exact.gradients(train[chosen])) / train.weight_sum
    refits = refit_without(objective, train, chosen, weight_decay=weight_decay, **ending)
    actual = refits.params[1:] - refits.params[0]
    moves = (predicted.numpy(force=True), actual.numpy(force=True))
    return ParameterChanges(chosen.numpy(force=True), *moves, refits.summary())
