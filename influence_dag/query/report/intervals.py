"""How sure a score of few refits is: 95 % intervals over the rows that were left out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
DRAWS = 400


def over_columns(
    score: Callable[[NDArray, NDArray], float], predicted: NDArray, actual: NDArray
) -> Interval:
    """Bootstrap of a score of two `(test, left_out)` arrays over what was left out.

    Rows of one column share a refit, so that columns are drawn, not pairs.
    """
    rng = np.random.default_rng(0)
    columns = rng.integers(predicted.shape[1], size=(DRAWS, predicted.shape[1]))
    of_draws = [score(predicted[:, drawn], actual[:, drawn]) for drawn in columns]
    low, high = (
        np.nanquantile(of_draws, [0.025, 0.975]) if np.isfinite(of_draws).any() else (np.nan,) * 2
    )
    return float(low), float(high)


def pearson(predicted: NDArray, actual: NDArray) -> float:
    """Correlation over all pairs; NaN where nothing moved."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(predicted.ravel(), actual.ravel())[0, 1])


def slope(predicted: NDArray, actual: NDArray) -> float:
    """Actual ≈ slope × predicted, by least squares through zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((predicted * actual).sum() / np.square(predicted).sum())
