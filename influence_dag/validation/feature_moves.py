r"""Perturbation influences against refits: one feature of one training row moves, the model is
fitted again, and each test loss changes by about $-\varepsilon P / n$.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation.agreement import pearson, slope
from influence_dag.validation.predictions import ExactPredictions
from influence_dag.validation.refits import Ending, positions_of, refit


@dataclass(frozen=True, eq=False)
class FeatureMoves:
    """Change of each test row's loss (or measurement) under each move of one training feature.

    `rows` and `features` say what was moved; a feature is a position in the flattened input.
    """

    rows: Int[Array, " m"]
    features: Int[Array, " m"]
    predicted: Float[Array, "k m"]
    actual: Float[Array, "k m"]
    epsilon: float
    refits: dict[str, Any] = field(default_factory=dict)

    @property
    def pearson(self) -> float:
        """Correlation over all pairs of test row and move."""
        return float(pearson(self.predicted.ravel(), self.actual.ravel()))

    def summary(self) -> dict[str, Any]:
        return {
            "moves": len(self.rows),
            "epsilon": self.epsilon,
            "pearson": self.pearson,
            "slope": slope(self.predicted, self.actual),
            **self.refits,
        }


def feature_moves(
    objective: Objective,
    train: Rows,
    test: Rows,
    moves: Sequence[tuple[int, int]],
    *,
    epsilon: float,
    weight_decay: float,
    damping: float | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 200,
) -> FeatureMoves:
    r"""Move each `(training row, flattened feature)` of `moves` by `epsilon` and fit again.

    The actual change is half the difference between moving up and moving down, which leaves
    the third order alone to differ from the derivative. The model's input has to be one tensor.
    """
    if not isinstance(train.x, Tensor):
        raise ModelError("feature_moves needs a model with one input tensor")
    objective = objective.in_float64()
    train, test = train.to(dtype=torch.float64), test.to(dtype=torch.float64)
    rows = positions_of([row for row, _ in moves], len(train))
    features = positions_of([at for _, at in moves], train.x[0].numel(), of="features")
    exact = ExactPredictions(objective, train, damping=weight_decay if damping is None else damping)
    P = perturbation_influences(objective, exact.factors(test), train[rows])
    P = P.reshape(len(test), len(rows), -1)
    predicted = -epsilon / train.weight_sum * P[:, torch.arange(len(rows)), features]
    more, weights = _moved(train, rows, features, epsilon)
    ending: Ending = {"tolerance": tolerance, "max_steps": max_steps}
    refits = refit(objective, more, weights, weight_decay=weight_decay, **ending)
    up, down = refits.measurements(test).chunk(2)
    return FeatureMoves(
        rows.numpy(force=True),
        features.numpy(force=True),
        predicted.numpy(force=True),
        ((up - down) / 2).T.numpy(force=True),
        epsilon,
        refits.summary(),
    )


def _moved(
    train: Rows, rows: Tensor, features: Tensor, epsilon: float
) -> tuple[Rows, Float[Tensor, "moves columns"]]:
    """All rows with the moved ones appended; each move's weights swap it for its original."""
    n, m = len(train), len(rows)
    moved = train.x[rows].repeat(2, *[1] * (train.x.ndim - 1))
    step = torch.tensor([epsilon, -epsilon], dtype=moved.dtype, device=moved.device)
    moved.view(2 * m, -1)[torch.arange(2 * m), features.repeat(2)] += step.repeat_interleave(m)
    weights = torch.zeros(2 * m, n + 2 * m, dtype=torch.float64)
    weights[:, :n] = train.shares
    weights[torch.arange(2 * m), rows.repeat(2)] = 0.0
    weights[torch.arange(2 * m), n + torch.arange(2 * m)] = train.shares[rows.repeat(2)]
    originals = train.unweighted
    return Rows.joined([originals, Rows(moved, originals[rows.repeat(2)].y)]), weights
