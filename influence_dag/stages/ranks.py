"""How alike two sets of numbers rank what they are of."""

import numpy as np


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row's entries, which share their mean rank where they tie.

    Rows of the training data that are alike have equal influences. NaN for a row in which all
    entries of a side are equal: it ranks nothing.

    >>> rank_correlations(np.array([[1.0, 1.0, 5.0]]), np.array([[0.2, 0.2, 0.1]]))
    array([-1.])
    """
    return np.array([_correlation(_ranks(x), _ranks(y)) for x, y in zip(a, b, strict=True)])


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    length = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / length) if length else np.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of one row's entries, counted from the middle."""
    order = values.argsort()
    in_order = values[order]
    changes = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(values)]])
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((edges[:-1] + edges[1:] - len(values)) / 2, np.diff(edges))
    return ranks
