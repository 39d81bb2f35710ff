"""Numbers as JSON has them, how they are spread, and how two sets of them agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.stages.ranks import Moments, rank_correlations

BINS = 61
POINTS = 3_000  # of a scatter plot


def numbers(values: Sequence[float] | NDArray) -> list[float | None]:
    """Numbers as JSON has them: what is not finite is nothing."""
    array = np.asarray(values, np.float64)
    return [value if np.isfinite(value) else None for value in array.tolist()]


def number(value: Any) -> float | None:
    return numbers([value])[0]


def histogram(values: NDArray) -> dict[str, Any]:
    """Counts between even edges around 0; the outermost 0.1 % on either side are folded in."""
    finite = values[np.isfinite(values)]
    limit = float(np.quantile(np.abs(finite), 0.999)) if len(finite) else 1.0
    limit = limit or 1.0
    counts, edges = np.histogram(np.clip(finite, -limit, limit), BINS, (-limit, limit))
    positive = int((finite > 0).sum())
    return {
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "all": len(finite),
        "positive": positive,
        "negative": int((finite < 0).sum()),
        "sum": number(finite.sum()),
        "beyond": int((np.abs(finite) > limit).sum()),
    }


def agreement(x: NDArray, y: NDArray) -> dict[str, float | None]:
    """Correlations, and by how much the first has to be multiplied to fit the second best.

    Nothing of less than three pairs, and of a side whose numbers are all equal.

    >>> agreement(np.array([0.1, 0.1, 0.1]), np.array([1.0, 2.0, 3.0]))["pearson"] is None
    True
    """
    if len(x) < 3 or np.isnan(pearson := Moments.of(x, y).pearson):
        return {"pearson": None, "spearman": None, "slope": None}
    return {
        "pearson": pearson,
        "spearman": number(rank_correlations(x[None], y[None])[0]),
        "slope": number((x @ y) / (x @ x)),
    }
