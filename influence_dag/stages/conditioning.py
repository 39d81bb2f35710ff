"""Columns whose sizes are so far apart that fits and solves lose their digits: told beforehand."""

import numpy as np

from influence_dag.stages.features import feature_names
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

APART = 1e3  # sizes that differ by less do no harm
SHOWN = 4
AT_ONCE = 2**14  # rows


def unscaled_columns(bench: Workbench) -> str:
    """Which columns of a table, and what to do, in a sentence; empty where there is nothing to say.

    The size of a column is its root mean square over the training rows: that is what its part of
    the curvature goes with, squared.
    """
    dataset = bench.require("dataset")
    names = feature_names(bench)
    is_float = names and np.dtype(dataset.variables["train_x"].dtype).kind == "f"
    if not is_float or len(dataset.attrs["inputs"]) != 1:
        return ""
    sizes = _sizes(dataset, bench.axis_of(dataset, "train").valid)
    order = np.argsort(sizes)[np.sort(sizes) > 0]
    if len(order) < 2 or sizes[order[-1]] < APART * sizes[order[0]]:
        return ""
    shown = min(SHOWN, len(order)) // 2  # no column stands on both sides
    small, large = order[:shown], order[::-1][:shown]
    return (
        f"columns {_listed(names, sizes, large)} and {_listed(names, sizes, small)} differ in size "
        f"by {sizes[order[-1]] / sizes[order[0]]:.0e}, which curvature has squared: "
        "data: {features: {standardise: true}} brings all to the order of 1 and keeps units "
        "(or, if they have to stay, compute: {dtype: float64})"
    )


def _sizes(dataset: Version, valid: np.ndarray) -> np.ndarray:
    """Root mean squares of the columns, from blocks of the rows."""
    squares, step = np.zeros(dataset.variables["train_x"].shape[1:]), AT_ONCE
    for start in range(0, len(valid), step):
        rows = dataset.read("train_x", slice(start, start + step))
        squares += np.square(rows[valid[start : start + step]]).sum(axis=0)
    return np.sqrt(squares / valid.sum())


def _listed(names: list[str], sizes: np.ndarray, which: np.ndarray) -> str:
    return ", ".join(f"{names[k]!r} (about {sizes[k]:.2g})" for k in which)
