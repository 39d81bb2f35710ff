"""Several rankings of the same rows as one."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from influence_dag.suspicion.noise import doubt
from influence_dag.suspicion.votes import Evidence

SUSPICIONS = {
    "combined": "what the neighbours and what the model say, as one",
    "neighbour_disagreement": "how far the nearest other rows contradict the label",
    "out_of_fold_loss": "loss under a model that has not seen the row",
    "loss": "loss at θ",
    "self_influence": "self-influence",
    "knn_shapley": "KNN-Shapley value on the test rows; a low one is suspect",
}
MODEL_VIEW = ("loss", "out_of_fold_loss", "self_influence")


def combined(
    *scores: Float[Array, " n"], weights: Sequence[float] | None = None
) -> Float[Array, " n"]:
    r"""Several rankings as one: the weighted sum of their normal scores, on the scale of one.

    $\Phi^{-1}$ of a row's rank is what Stouffer's method adds up of independent tests, over the
    root of the sum of squared weights (default: 1 each). Give it views that err independently.
    """
    shares = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    parts = (share * normal_scores(each) for share, each in zip(shares, scores, strict=True))
    return sum(parts, np.zeros(len(scores[0]))) / np.sqrt((shares**2).sum())


def combined_suspicion(
    rankings: Mapping[str, Float[Array, " n"]], evidence: Evidence | None = None
) -> Float[Array, " n"]:
    """Two views of a row as one: the neighbours' and the model's (`combined` of both).

    Loss, loss out of fold and self-influence are of the same kind of model and err together. So
    they are combined among themselves first and ranked anew, as one view, and the neighbours, who
    know nothing of the model, are the other. Whichever of all these are there take part.

    With `evidence` of what classes the rows seem to be of, the neighbours' view is their `doubt` in
    the label, and the views count as much as they are trusted. Where models have not seen the rows,
    their doubt and the neighbours', pooled, stands beside that, as its equal.
    """
    known = dict(rankings)
    if evidence is not None:
        known["neighbour_disagreement"] = doubt([evidence.neighbours], evidence.labels)
    of_model = [known[name] for name in MODEL_VIEW if name in known]
    near = [known[name] for name in ("neighbour_disagreement",) if name in known]
    views = [*near, *([combined(*of_model)] if of_model else [])]
    trust = evidence.trust if evidence is not None and len(views) == 2 else None
    said = combined(*views, weights=trust)
    if evidence is None or evidence.out_of_fold is None:
        return said
    return combined(said, doubt([evidence.neighbours, evidence.out_of_fold], evidence.labels))


def normal_scores(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Van der Waerden's scores: $Φ^{-1}((r - 1/2) / n)$ of each rank r, ties sharing their mean.

    NaN is not ranked, and stays NaN; what is infinite is beyond all others.

    >>> normal_scores(np.array([5.0, 1.0, 3.0])).round(2)
    array([ 0.97, -0.97,  0.  ])
    """
    found, known = np.full(len(values), np.nan), ~np.isnan(values)
    _, place, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    quantile = NormalDist().inv_cdf
    middle = (np.cumsum(counts) - counts / 2) / max(1, known.sum())
    found[known] = np.array([quantile(each) for each in middle.tolist()], np.float64)[place]
    return found
