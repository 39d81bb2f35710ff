"""How well predictions meet refits, with the interval that drawing refits again would give."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from influence_dag.stages.ranks import Moments

DRAWS = 400  # of a bootstrap

Interval = tuple[float, float]


def over_columns(
    score: Callable[[NDArray, NDArray], float], predicted: NDArray, actual: NDArray
) -> Interval:
    """Bootstrap of a score of two `(test, left_out)` arrays over what was left out.

    Rows of one column share a refit, so that columns are drawn, not pairs.
    """
    rng = np.random.default_rng(0)
    columns = rng.integers(predicted.shape[1], size=(DRAWS, predicted.shape[1]))
    of_draws = [score(predicted[:, drawn], actual[:, drawn]) for drawn in columns]
    if not np.isfinite(of_draws).any():
        return np.nan, np.nan
    low, high = np.nanquantile(of_draws, [0.025, 0.975])
    return float(low), float(high)


def pearson(predicted: NDArray, actual: NDArray) -> float:
    """Correlation over all pairs; NaN where one side is constant."""
    return float(Moments.of(predicted, actual).pearson)


def slope(predicted: NDArray, actual: NDArray) -> float:
    """Actual ≈ slope × predicted, by least squares through zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((predicted * actual).sum() / np.square(predicted).sum())
