"""How alike two sets of numbers are, and how alike they rank what they are of."""

from dataclasses import dataclass, field

import numpy as np

NOISE = 8 * np.finfo(np.float64).eps  # of the size of numbers: what spreads less is constant


def length(values: np.ndarray) -> float:
    """The Euclidean norm of numbers whose squares may overflow or vanish.

    >>> [length(np.array(each)) for each in ([0.0, 2e200], [0.0, 0.0], [np.inf, 1.0])]
    [2e+200, 0.0, inf]
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(np.ravel(values / largest)))


def _two() -> np.ndarray:
    return np.zeros(2)


@dataclass(frozen=True, eq=False)
class Moments:
    """Means, roots of the sums of squared deviations, and correlation of pairs of numbers.

    Of parts that come one after another: sums of squares of the numbers themselves would cancel
    where these spread little about their mean, and overflow or vanish at the square of their size
    squared (Chan, Golub & LeVeque 1983).
    """

    count: int = 0
    means: np.ndarray = field(default_factory=_two)
    spreads: np.ndarray = field(default_factory=_two)
    correlation: float = 0.0

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> "Moments":
        """Those of two arrays of one shape, which may be without numbers."""
        if not a.size:
            return cls()
        pair = np.stack([a.ravel(), b.ravel()])
        means = pair.mean(axis=1)
        centred = pair - means[:, None]
        spreads = np.array([length(row) for row in centred])
        x, y = (
            row / spread if spread else row for row, spread in zip(centred, spreads, strict=True)
        )
        return cls(pair.shape[1], means, spreads, float(x @ y))

    def joined(self, other: "Moments") -> "Moments":
        """Those of all numbers of both."""
        if not other.count:
            return self
        count = self.count + other.count
        apart = (other.means - self.means) * np.sqrt(self.count * other.count / count)
        means = self.means + (other.means - self.means) * (other.count / count)
        spreads = np.hypot(np.hypot(self.spreads, other.spreads), apart)
        parts = np.stack([self.spreads, other.spreads, apart])
        shares = np.divide(parts, spreads, out=np.zeros_like(parts), where=spreads > 0).prod(axis=1)
        correlation = shares @ [self.correlation, other.correlation, 1.0]
        return Moments(count, means, spreads, float(correlation))

    @property
    def lengths(self) -> np.ndarray:
        """Euclidean norms of the numbers themselves."""
        return np.hypot(self.spreads, np.sqrt(self.count) * self.means)

    @property
    def pearson(self) -> float:
        """NaN where all numbers of a side are equal.

        >>> round(Moments.of(np.array([1e9, 1e9 + 1]), np.array([2.0, 3.0])).pearson, 9)
        1.0
        """
        constant = self.spreads <= NOISE * self.lengths
        return np.nan if constant.any() else min(max(self.correlation, -1.0), 1.0)


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
