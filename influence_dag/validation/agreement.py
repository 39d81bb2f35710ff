"""How well a prediction agrees with what happened: correlations, ranks, intervals, detection."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from influence_dag.errors import ModelError

_NOISE = 8 * np.finfo(np.float64).eps  # of the size of numbers: what spreads less is constant


def check_shape(influences: Any, tests: int, rows: int) -> None:
    """Raise `ModelError` for influences that are not of all pairs of test and training row."""
    if influences.shape != (tests, rows):
        raise ModelError(
            f"influences have shape {tuple(influences.shape)}; wanted ({tests}, {rows}), one for "
            "each test row and each training row, those that are not left out included"
        )


def pearson(a: Float[Array, "*k m"], b: Float[Array, "*k m"]) -> Float[Array, "*k"]:
    """Correlation along the last axis; NaN where one side is constant.

    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])).round(12).item()
    1.0
    """
    return np.asarray((_unit_deviations(a) * _unit_deviations(b)).sum(axis=-1))


def _unit_deviations(values: Float[Array, "*k m"]) -> Float[Array, "*k m"]:
    """Deviations from the mean, of length 1; NaN where they are nothing but its rounding."""
    size = np.abs(values).max(axis=-1, keepdims=True)
    apart = values - values.mean(axis=-1, keepdims=True)
    largest = np.abs(apart).max(axis=-1, keepdims=True)
    apart = apart / np.where(largest > _NOISE * size, largest, np.nan)  # squares may overflow
    return apart / np.linalg.norm(apart, axis=-1, keepdims=True)


def slope(predicted: Float[Array, "*k"], actual: Float[Array, "*k"]) -> float:
    """The factor c for which `c * predicted` comes nearest to `actual` in squares; NaN of zeros."""
    squares = (predicted * predicted).sum()
    return float((predicted * actual).sum() / squares) if squares else np.nan


def spearman(a: Float[Array, "k m"], b: Float[Array, "k m"]) -> Float[Array, " k"]:
    """Rank correlation along the last axis, tied values sharing their mean rank.

    NaN where one side is constant, or has a NaN.
    """
    return Ranks(a).correlate(Ranks(b))


class Ranks:
    """The ranks of each row's entries; among resampled columns too, without sorting again."""

    def __init__(self, values: Float[Array, "k m"]):
        self._unknown = np.isnan(values).any(axis=1)
        in_order = np.sort(values, axis=1)
        pairs = list(zip(in_order, values, strict=True))
        self._order = np.argsort(values, axis=1, kind="stable")
        self._below = np.stack([np.searchsorted(s, v, side="left") for s, v in pairs])
        self._up_to = np.stack([np.searchsorted(s, v, side="right") for s, v in pairs])

    def __call__(self, counts: Float[Array, " m"]) -> Float[Array, "k m"]:
        """Mean ranks when column c is there `counts[c]` times."""
        total = np.pad(np.cumsum(counts[self._order], axis=1), ((0, 0), (1, 0)))
        below, up_to = (np.take_along_axis(total, i, axis=1) for i in (self._below, self._up_to))
        return (below + up_to + 1) / 2

    def correlate(
        self, other: "Ranks", counts: Float[Array, " m"] | None = None
    ) -> Float[Array, " k"]:
        """Spearman's correlation of each row, column c being there `counts[c]` times."""
        counts = np.ones(self._order.shape[1]) if counts is None else counts
        a, b = self(counts), other(counts)
        a, b = (v - (v * counts).sum(1, keepdims=True) / counts.sum() for v in (a, b))
        scale = np.sqrt((a * a * counts).sum(1) * (b * b * counts).sum(1))
        scale[self._unknown | other._unknown | (scale == 0)] = np.nan
        return (a * b * counts).sum(1) / scale


def bootstrap_spearman(
    predicted: Float[Array, "k m"],
    actual: Float[Array, "k m"],
    *,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of the rows' rank correlations; NaN where none is defined.

    Rows are drawn with replacement. Columns, which all rows share (the subsets of an ensemble),
    are resampled by halves without replacement: that has the variance of the bootstrap (Shao &
    Wu, 1989) without its repeated columns, which would tie. Rank correlations of fewer columns
    are lower on the average (by 3 (ρ - τ) / m), so replicates are centred on the estimate.
    """
    rng = np.random.default_rng(seed)
    left, right = Ranks(predicted), Ranks(actual)
    k, m = predicted.shape
    means = []
    for _ in range(replicates):
        half = (rng.permutation(m) < m // 2).astype(float)
        means.append(mean_of_known(left.correlate(right, half)[rng.integers(k, size=k)]))
    centre = mean_of_known(left.correlate(right)) - mean_of_known(np.array(means))
    if np.isnan(centre):
        return np.nan, np.nan
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2]) + centre
    return float(max(low, -1.0)), float(min(high, 1.0))


def mean_of_known(values: Float[Array, " n"]) -> float:
    """The mean of those that are not NaN; NaN where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def roc_auc(scores: Float[Array, " n"], positive: Bool[Array, " n"]) -> float:
    """The chance that a positive scores above a negative, ties counting one half.

    NaN, as what follows, where a score is: no rank is known of it.

    >>> roc_auc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False]))
    1.0
    """
    if np.isnan(scores).any():
        return np.nan
    ranks = Ranks(scores[None])(np.ones(len(scores)))[0]
    p, q = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * q))


def found_in_top(scores: Float[Array, " n"], positive: Bool[Array, " n"], *, share: float) -> float:
    """The part of the positives among the `share` of entries with the highest scores."""
    if np.isnan(scores).any():
        return np.nan
    top = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return float(positive[top].sum() / positive.sum())
