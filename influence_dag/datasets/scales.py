"""Columns of very different scales, which leave few digits to a solve."""

import numpy as np

from influence_dag.datasets.split_rows import SplitRows

APART = 1e3  # the largest standard deviation over the smallest; less does no harm
SHOWN = 3


def unscaled(train: SplitRows) -> list[str]:
    """The feature columns of the largest and the smallest scale, if these are far apart.

    Each with its standard deviation; empty where columns are alike, or are no columns of a table.
    A curvature has the squares of these scales on its diagonal: 10³ apart are 10⁶ of its condition.
    """
    if train.feature_names is None:
        return []
    (x,) = train.x.values()
    scales = np.asarray(x).reshape(len(x), -1).std(axis=0)
    order = [k for k in np.argsort(scales) if scales[k] > 0]
    if len(order) < 2 or scales[order[-1]] < APART * scales[order[0]]:
        return []
    ends = dict.fromkeys([*order[: -SHOWN - 1 : -1], order[0]])
    return [f"{train.feature_names[k]} ±{scales[k]:.3g}" for k in ends]
