"""Rows of an input as the model sees them."""

import numpy as np

from influence_dag.errors import DataError
from influence_dag.study.data import FeatureSettings


def prepared(
    values: np.ndarray, features: FeatureSettings, *, name: str = "an input"
) -> np.ndarray:
    """Rows of an input as the model sees them: in the settings' shape, times their scale.

    A shape that does not fit is left for `datasets` to refuse. Raises `DataError` where the scale
    makes a number infinite.
    """
    if features.shape is not None and np.prod(values.shape[1:]) == np.prod(features.shape):
        values = values.reshape(len(values), *features.shape)
    if features.scale == 1:
        return values
    if values.dtype == np.float16:  # whose products would be of 3 digits, and 0 below 6e-8
        values = values.astype(np.float64)
    with np.errstate(over="ignore"):
        scaled = values * features.scale
    if (np.isinf(scaled) & np.isfinite(values)).any():
        raise DataError(
            f"{name} times data.features.scale {features.scale:g} overflows; choose a smaller one"
        )
    return scaled
