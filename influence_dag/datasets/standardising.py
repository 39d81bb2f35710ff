r"""Columns brought to the order of 1, in a way that edits of rows seldom change.

The model sees $(x - m) / s$, column by column. s is the power of two nearest to the standard
deviation of the training rows, m the multiple of s / 4 nearest to their mean, both by their
weights: what is left has a mean of at most 1/8 and a deviation between 0.7 and 1.4, in numbers that
rounding leaves alone. Of the rows as they are now, m and s are always the same, whatever they were
before; an edit changes them only where a statistic crosses from one grid point to the next. Then
every row is another input, and everything is computed anew. (`unscaled` tells of columns that want
it.)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.sources.on_demand import Values, moments
from influence_dag.errors import DataError

if TYPE_CHECKING:
    from influence_dag.datasets.split_rows import SplitRows

_STEPS = 4  # of the mean, in a unit of s
_CONSTANT = 1e-12  # deviation relative to the size of the numbers, below which a column is constant
LARGEST = 1e140  # size of numbers, above which sums of squares overflow
APART = 1e3  # the largest standard deviation of columns over the smallest; less does no harm
SHOWN = 3  # columns that are named


@dataclass(frozen=True, eq=False)
class Units:
    """What one unit of the model's input is: `mean` m and `scale` s, in the shape of a row."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: Values, source: str, weights: np.ndarray | None = None) -> "Units":
        """From training rows `(n, *shape)`, by their weights; a constant column keeps its unit.

        Raises `DataError` for whole numbers that are no measurements, such as tokens, and for
        numbers whose squares a float64 does not hold.
        """
        if values.dtype.kind != "f":
            raise DataError(
                f"{source}: data.features.standardise is for decimal numbers; the input is "
                f"{values.dtype}, which may be indices: leave the setting out, or hand over floats"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation, largest = moments(values, weights)
        beyond = (largest > LARGEST) | ((largest > 0) & (largest < 1 / LARGEST))
        if beyond.any():
            raise DataError(
                f"{source}: data.features.standardise: a column's largest number is "
                f"{largest[beyond][0]:.3g}, whose square is beyond float64; write that column in "
                "another unit"
            )
        varies = deviation > _CONSTANT * largest
        scale = np.exp2(np.round(np.log2(np.where(varies, deviation, 1.0))))
        return cls(np.round(mean / scale * _STEPS) / _STEPS * scale, scale)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """What the model sees of rows."""
        return (values - self.mean) / self.scale


def unscaled(train: "SplitRows") -> list[str]:
    """The feature columns of the largest and the smallest scale, if these are far apart.

    Each with its standard deviation; empty where columns are alike, or are no columns of a table.
    A curvature has the squares of these scales on its diagonal: 10³ apart are 10⁶ of its condition.
    """
    if train.feature_names is None:
        return []
    (x,) = train.x.values()
    scales = moments(x, train.weights)[1].ravel()
    order = [k for k in np.argsort(scales) if scales[k] > 0]
    if len(order) < 2 or scales[order[-1]] < APART * scales[order[0]]:
        return []
    ends = dict.fromkeys([*order[: -SHOWN - 1 : -1], order[0]])
    return [f"{train.feature_names[k]} ±{scales[k]:.3g}" for k in ends]
