"""What neighbours vote each row's class to be, and how far such views are to be trusted."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from influence_dag.suspicion.neighbours import NEIGHBOURS, nearest, nearest_of_others

MOST_VOTES = 2**25  # numbers of all rows' classes: 256 MiB


@dataclass(frozen=True, eq=False)
class Evidence:
    """What classes rows seem to be of, apart from their labels, and whom to believe how much.

    `neighbours` and `out_of_fold` are log-probabilities of each class by the row's neighbours and
    by a model that has not seen the row; `trust` weighs the neighbours' view and the model's.
    """

    labels: Int[Array, " n"]  # positions among the classes
    neighbours: Float[Array, "n c"]
    out_of_fold: Float[Array, "n c"] | None = None
    trust: tuple[float, float] = (1.0, 1.0)

    def of_rows(self, rows: Int[Array, " m"]) -> "Evidence":
        """The same of some of the rows."""
        unseen = None if self.out_of_fold is None else self.out_of_fold[rows]
        return replace(
            self, labels=self.labels[rows], neighbours=self.neighbours[rows], out_of_fold=unseen
        )


@dataclass(frozen=True, eq=False)
class Votes:
    """What neighbours take rows to be (log-probabilities), and if the most voted class is right.

    `right` is of the test rows, or where there are none of the rows themselves.
    """

    labels: Int[Array, " n"]  # positions among the classes
    neighbours: Float[Array, "n c"]
    right: Bool[Array, " t"]

    def evidence(
        self, model_right: Bool[Array, " t"] | None, out_of_fold: Float[Array, "n c"] | None = None
    ) -> Evidence:
        """With what the model makes of the same test rows, or of the rows that it has not seen."""
        right = self.right
        if model_right is None and out_of_fold is not None:
            model_right = out_of_fold.argmax(axis=1) == self.labels
            right = self.neighbours.argmax(axis=1) == self.labels
        trust = (1.0, 1.0) if model_right is None else trusted(right, model_right)
        return Evidence(self.labels, self.neighbours, out_of_fold, trust)


def votes(
    points: Float[Array, "n d"],
    targets: Int[Array, " n"],
    test_points: Float[Array, "t d"] | None = None,
    test_targets: Int[Array, " t"] | None = None,
    *,
    k: int = NEIGHBOURS,
    near: Int[Array, "n k"] | None = None,
) -> Votes | None:
    """How the `k` nearest other rows vote on each row, and if they are right about test rows.

    None where rows and classes are too many for a number each, or where there is no other row.
    `near`: `nearest` of the rows, if known.
    """
    classes, labels = np.unique(targets, return_inverse=True)
    if len(targets) * len(classes) > MOST_VOTES or len(targets) < 2:
        return None
    near = nearest(points, k) if near is None else near
    of_rows = log_shares(labels[near], len(classes))
    if test_points is None or test_targets is None:
        return Votes(labels, of_rows, of_rows.argmax(axis=1) == labels)
    of_tests = log_shares(labels[nearest_of_others(points, test_points, k)], len(classes))
    return Votes(labels, of_rows, classes[of_tests.argmax(axis=1)] == test_targets)


def log_shares(near: Int[Array, "n k"], classes: int) -> Float[Array, "n c"]:
    r"""Log of each class's share among neighbours, nearest first; rank r counts $1/\sqrt r$.

    And for one more, who is of every class alike: nothing is impossible.
    """
    n, k = near.shape
    weights = 1 / np.sqrt(np.arange(1, k + 1))
    shares = np.zeros((n, classes))
    np.add.at(shares, (np.arange(n)[:, None], near), weights / weights.sum())
    return np.log((k * shares + 1 / classes) / (k + 1))


def trusted(one: Bool[Array, " t"], other: Bool[Array, " t"]) -> tuple[float, float]:
    r"""The weights of two views in a vote: $\log(a / (1 - a))$, a being how often each is right.

    Those of the best majority of views that err independently (Nitzan & Paroush 1982). A view that
    is wrong more often than right is not heard; if both are, they count alike.
    """
    weights = _log_odds(one), _log_odds(other)
    return weights if any(weights) else (1.0, 1.0)


def _log_odds(right: Bool[Array, " t"]) -> float:
    share = (right.sum() + 0.5) / (len(right) + 1)
    return max(0.0, float(np.log(share / (1 - share))))
