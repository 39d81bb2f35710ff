r"""Leaving training rows out, one refit each: what influences predict against what happens.

Up-weighting influences are the derivative of a refit. Without $z_i$ the model minimises
$(1/n) \sum_{k \ne i} L_k + (w/2) \lVert\theta\rVert^2$, and the loss of test row j moves by about
$+I_{ji} / n$.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from influence_dag.errors import IndefiniteError, ModelError, check_known
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import Factorization
from influence_dag.validation.agreement import (
    check_shape,
    mean_of_known,
    pearson,
    slope,
    spearman,
)
from influence_dag.validation.predictions import ExactPredictions
from influence_dag.validation.refits import Ending, positions_of, refit_without

F64 = torch.float64
MOST_BYTES = 2**30  # of H in float64 up to which it is factorised unasked: p = 11,585


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Change of each test row's loss (or measurement) when each chosen training row is left out.

    `predicted` is `+I / n`, `actual` that of a refit, both positive where the row helps.
    `corrected` is the prediction with the row's leverage (None where it was not made).
    `base_losses` are the test rows' losses with every row; `base_shift` is how far the full fit
    moved them from those at the given θ before anything was left out: influences describe a
    stationary point, so it should be next to nothing.
    """

    index: Int[Array, " m"]
    predicted: Float[Array, "k m"]
    actual: Float[Array, "k m"]
    corrected: Float[Array, "k m"] | None
    base_losses: Float[Array, " k"]
    base_shift: float
    refits: dict[str, Any] = field(default_factory=dict)

    @property
    def pearson(self) -> float:
        """Correlation over all pairs."""
        return float(pearson(self.predicted.ravel(), self.actual.ravel()))

    @property
    def pearson_per_test(self) -> Float[Array, " k"]:
        return pearson(self.predicted, self.actual)

    @property
    def slope(self) -> float:
        """`actual ≈ slope * predicted`: above 1, because the row's own curvature goes as well."""
        return slope(self.predicted, self.actual)

    def summary(self) -> dict[str, Any]:
        corrected = {}
        if self.corrected is not None:
            corrected = {
                "corrected_pearson": float(pearson(self.corrected.ravel(), self.actual.ravel())),
                "corrected_slope": slope(self.corrected, self.actual),
            }
        return {
            "rows_left_out": len(self.index),
            "test_rows": len(self.actual),
            "pearson": self.pearson,
            "worst_test_row_pearson": float(np.fmin.reduce(self.pearson_per_test)),
            "spearman_per_test": mean_of_known(spearman(self.predicted, self.actual)),
            "slope": self.slope,
            **corrected,
            "base_shift": self.base_shift,
            **self.refits,
        }


def leave_one_out(
    objective: Objective,
    train: Rows,
    test: Rows,
    *,
    weight_decay: float,
    damping: float | None = None,
    index: Sequence[int] | Int[Tensor, " m"] | None = None,
    influences: Float[Tensor, "k n"] | None = None,
    factorization: Factorization | None = None,
    leverage: Literal["auto"] | bool = "auto",
    **ending: Unpack[Ending],
) -> LeaveOneOut:
    r"""Leave out each training row of `index` (default: every one) and fit again.

    `influences` are the ones to be judged, by whatever method, not divided by n; without them
    they are computed exactly at `objective.params` with `damping` (default `weight_decay`, with
    which $H + \lambda I$ is the Hessian of what was minimised).

    `leverage` adds the exact prediction that knows that the row's own curvature goes with it, see
    `ExactPredictions.corrected_influences`: to second order for a model linear in θ, and on a
    network at its minimum nearer than the plain one, too. `"auto"`: where $H + \lambda I$ is
    positive definite, the loss depends on the row's own outputs alone, and either H takes at most 1
    GiB in float64 (p = 11,585) or its factor is at hand: made for `influences` that were not given,
    or given as `factorization` (exact, for this `damping`).

    Refits start at `objective.params`; a network may end in another minimum than one fitted from
    scratch, which is what is asked of a derivative. `tolerance`, `max_steps` and `proximal` (for a
    θ that is no minimum) as in `refit`. Raises `NotConvergedError` as `refit` does, and
    `ModelError` for influences of another shape.
    """
    if isinstance(leverage, str):
        check_known("leverage", leverage, ["auto"])
    objective, train, test = objective.in_float64(), train.to(dtype=F64), test.to(dtype=F64)
    chosen = positions_of(index, len(train))
    damping = weight_decay if damping is None else damping
    small = 8 * objective.size**2 <= MOST_BYTES
    given = None if small else factorization  # made anew, it has all the digits of float64
    exact = ExactPredictions(objective, train, damping=damping, factorization=given)
    if leverage == "auto":
        leverage = "auto" if small or given is not None or influences is None else False
    if influences is None:
        predicted = exact.influences(test, train[chosen])
    else:
        check_shape(influences, len(test), len(train))
        predicted = influences.to(objective.params)[:, chosen]
    refits = refit_without(objective, train, chosen, weight_decay=weight_decay, **ending)
    before, measured = objective.measurements(objective.params, test), refits.measurements(test)
    return LeaveOneOut(
        chosen.numpy(force=True),
        predicted.div(train.weight_sum).numpy(force=True),
        (measured[1:] - measured[0]).T.numpy(force=True),
        _corrected(exact, test, train[chosen], leverage),
        measured[0].numpy(force=True),
        float((measured[0] - before).abs().max()),
        refits.summary(),
    )


def _corrected(
    exact: ExactPredictions, test: Rows, rows: Rows, leverage: Literal["auto"] | bool
) -> Float[Array, "k m"] | None:
    if leverage is False:
        return None
    try:
        return exact.corrected_influences(test, rows).div(exact.train.weight_sum).numpy(force=True)
    except (IndefiniteError, ModelError):
        if leverage is True:
            raise
        return None
