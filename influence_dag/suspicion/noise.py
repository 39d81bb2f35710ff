"""Which classes are given for which: a noise matrix, and what it makes of views of each label.

A view is, for each row, log-probabilities of all classes by somebody who has not seen its label.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

STEPS = 30  # of two weights: a dozen suffice


def confident_joint(view: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, "c given"]:
    """How often rows of each class seem to be given each label (Northcutt et al. 2021).

    A row counts for the likeliest of the classes that are as likely for it as for the rows that are
    given them, on average.
    """
    chances, classes = np.exp(view), view.shape[1]
    sums, counts = np.zeros(classes), np.bincount(labels, minlength=classes)
    np.add.at(sums, labels, chances[np.arange(len(labels)), labels])
    thresholds = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    confident = np.where(chances >= thresholds, chances, -1.0)
    seems, known = confident.argmax(axis=1), confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (seems[known], labels[known]), 1)
    return joint


def noise_matrix(
    views: Sequence[Float[Array, "n c"]], labels: Int[Array, " n"]
) -> Float[Array, "c given"]:
    """The chance of each given label in rows of each class, by the views' mean confident joint.

    Half a row more in each place, so that nothing is impossible.
    """
    joint = np.mean([confident_joint(view, labels) for view in views], axis=0) + 0.5
    return joint / joint.sum(axis=1, keepdims=True)


def doubt(views: Sequence[Float[Array, "n c"]], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    r"""How unlikely each given label is to be the right one: $-\log p(c = y \mid y)$.

    The views are pooled as $p(c) \propto \prod_k q_k(c)^{w_k}$ and seen through the noise matrix
    T: a label y is given with $\sum_c p(c) T_{cy}$. The weights are those under which the given
    labels are likeliest (Patrini et al. 2017, forward correction), so that a view that errs more,
    or says what another one says already, counts less. What weighs is how it predicts labels that
    it has not seen.
    """
    noise = noise_matrix(views, labels)[:, labels].T
    weights = np.ones(len(views))
    for _ in range(STEPS):
        weights = _better(weights, views, noise)
    chances = _pooled(weights, views)
    given = (chances * noise).sum(axis=1)
    rows = np.arange(len(labels))
    right = chances[rows, labels] * noise[rows, labels]
    tiny = np.finfo(np.float64).tiny
    return np.log(np.maximum(given, tiny)) - np.log(np.maximum(right, tiny))


def _pooled(weights: Float[Array, " k"], views: Sequence[Array]) -> Float[Array, "n c"]:
    pooled = np.zeros_like(views[0])
    for weight, view in zip(weights, views, strict=True):
        pooled += weight * view
    chances = np.exp(pooled - pooled.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def _better(
    weights: Float[Array, " k"], views: Sequence[Array], noise: Float[Array, "n c"]
) -> Float[Array, " k"]:
    """One step of an EM gradient algorithm (Lange 1995): Newton's, for the classes as expected."""
    chances = _pooled(weights, views)
    expected = chances * noise
    expected /= expected.sum(axis=1, keepdims=True)
    means = [(chances * view).sum(axis=1) for view in views]
    slope = [((expected - chances) * view).sum() for view in views]
    curvature = np.array(
        [
            [(chances * a * b).sum() - m @ n for b, n in zip(views, means, strict=True)]
            for a, m in zip(views, means, strict=True)
        ]
    )
    ridge = 1e-9 * np.trace(curvature) + np.finfo(np.float64).tiny
    step = np.linalg.solve(curvature + ridge * np.eye(len(weights)), np.array(slope))
    return np.maximum(weights + step, 0.0)
