"""Several rankings of the same rows as one."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

SUSPICIONS = {
    "combined": "what the neighbours and what the model say, as one",
    "neighbour_disagreement": "how far the nearest other rows contradict the label",
    "out_of_fold_loss": "loss under a model that has not seen the row",
    "loss": "loss at θ",
    "self_influence": "self-influence",
    "knn_shapley": "KNN-Shapley value on the test rows; a low one is suspect",
}
MODEL_VIEW = ("loss", "out_of_fold_loss", "self_influence")


def combined(*scores: Float[Array, " n"]) -> Float[Array, " n"]:
    r"""Several rankings as one: the sum of their normal scores, over the root of their number.

    $\Phi^{-1}$ of a row's rank is what Stouffer's method adds up of independent tests; each view
    counts once, whatever its scale. Give it views that err independently of each other.
    """
    return sum(map(normal_scores, scores), np.zeros(len(scores[0]))) / np.sqrt(len(scores))


def combined_suspicion(rankings: Mapping[str, Float[Array, " n"]]) -> Float[Array, " n"]:
    """Two views of a row as one: the neighbours' and the model's (`combined` of both).

    Loss, loss out of fold and self-influence are of the same kind of model and err together. So
    they are combined among themselves first and ranked anew, as one view, and the neighbours, who
    know nothing of the model, are the other. Whichever of them are there take part.
    """
    of_model = [rankings[name] for name in MODEL_VIEW if name in rankings]
    views = [combined(*of_model)] if of_model else []
    if "neighbour_disagreement" in rankings:
        views.append(rankings["neighbour_disagreement"])
    return combined(*views)


def normal_scores(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Van der Waerden's scores: $Φ^{-1}((r - 1/2) / n)$ of each rank r, ties sharing their mean.

    What is not finite is not ranked, and stays NaN.

    >>> normal_scores(np.array([5.0, 1.0, 3.0])).round(2)
    array([ 0.97, -0.97,  0.  ])
    """
    found, known = np.full(len(values), np.nan), np.isfinite(values)
    _, place, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    quantile = NormalDist().inv_cdf
    middle = (np.cumsum(counts) - counts / 2) / max(1, known.sum())
    found[known] = np.array([quantile(each) for each in middle.tolist()], np.float64)[place]
    return found
