"""The names of the features that a kept θ was made from.

The entries of a θ that is pinned, or of a checkpoint, belong to features by position: where the
files have these in another order, each entry would meet another feature. A curvature is kept for
the θ that it was computed at, so that it needs no check of its own.
"""

from collections.abc import Sequence

import numpy as np

from influence_dag.errors import StudyError
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.texts import listed


def feature_names(bench: Workbench) -> list[str]:
    """Names of the feature columns, in order; none where inputs are arrays without any."""
    dataset = bench.require("dataset")
    dims = list(dataset.attrs["feature_dims"])
    if len(dims) != 1 or dims[0] not in dataset.coordinates:
        return []
    names = np.asarray(dataset.coordinate(dims[0]))
    return [] if names.dtype.kind in "iu" else [str(name) for name in names]


def check_features(bench: Workbench, kept: Version | None, settings_key: str) -> None:
    """Raise `StudyError` where a feature stands elsewhere than when the kept θ was made.

    New names in their old places are only names.
    """
    if kept is None or kept.attrs.get("settings_key") != settings_key:
        return
    before, now = list(kept.attrs.get("features", [])), feature_names(bench)
    if all(before.index(name) == now.index(name) for name in set(before) & set(now)):
        return
    cure = (
        "give a checkpoint that was trained on this order"
        if bench.settings.model.fit is None
        else "let θ follow: model.refit: on_change"
    )
    raise StudyError(
        f"{bench.study.name}: the stored {kept.artifact} was made from the features "
        f"{listed(before)}, in this order, and the files have {listed(now)}: it would meet other "
        f"features; {_order(before, now)}{cure}"
    )


def _order(before: Sequence[str], now: Sequence[str]) -> str:
    """The setting that gives the columns in the order of before, where they are all there."""
    if not set(before) <= set(now):
        return ""
    return f"write data.features.columns: [{listed(before, 40)}], or "
