"""Feature columns: in the order and units that a kept θ was made from, of sizes that leave digits.

The entries of a θ that is pinned, or of a checkpoint, belong to features by position: where the
files have these in another order, each entry would meet another feature, and where standardised
columns have other units since an edit, other numbers of the same one. A curvature is kept for
the θ that it was computed at, so that it needs no check of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from influence_dag.errors import StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages.blocks import pieces
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.texts import listed

APART = 1e3  # sizes that differ by less do no harm
SHOWN = 4
AT_ONCE = 2**14  # rows


def feature_names(bench: Workbench) -> list[str]:
    """Names of the feature columns, row-major; none where inputs are arrays without any."""
    dataset = bench.require("dataset")
    if columns := dataset.attrs.get("feature_columns"):
        return list(columns)
    dims = list(dataset.attrs["feature_dims"])
    if len(dims) != 1 or dims[0] not in dataset.coordinates:
        return []
    names = np.asarray(dataset.coordinate(dims[0]))
    return [] if names.dtype.kind in "iu" else [str(name) for name in names]


def feature_units(bench: Workbench) -> dict[str, Any]:
    """What one unit of the model's input is: the `scale`, and of standardised columns a hash."""
    dataset = bench.require("dataset")
    names = [name for name in ("feature_mean", "feature_scale") if name in dataset.coordinates]
    values = [np.asarray(dataset.coordinate(name)).tolist() for name in names]
    return {
        "scale": bench.settings.data.features.scale,
        "standardised": fingerprint(values) if names else "",
    }


def check_features(bench: Workbench, kept: Version | None, settings_key: str) -> None:
    """Raise `StudyError` where a feature is elsewhere, or other, than when the kept θ was made.

    New names in their old places are only names.
    """
    if kept is None or kept.attrs.get("settings_key") != settings_key:
        return
    _check_units(bench, kept)
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


def _check_units(bench: Workbench, kept: Version) -> None:
    """Of a given checkpoint nobody but its maker knows the units: those of its first run hold."""
    now = feature_units(bench)
    before, given = kept.attrs.get("feature_units", now), bench.settings.model.fit is None
    if before == now or (given and not (before["standardised"] and now["standardised"])):
        return
    moved = "scale" if before["scale"] != now["scale"] and not given else "standardise"
    cure = (
        "standardise the columns in the files, so that their units stay, or give a checkpoint that "
        "was trained on these rows"
        if given
        else "let θ follow: model.refit: on_change"
    )
    raise StudyError(
        f"{bench.study.name}: the stored {kept.artifact} was made from columns in other units than "
        f"they have now (data.features.{moved}; standardised ones follow the training rows): it "
        f"would meet other numbers; {cure}"
    )


def _order(before: Sequence[str], now: Sequence[str]) -> str:
    """The setting that gives the columns in the order of before, where they are all there."""
    if not set(before) <= set(now):
        return ""
    return f"write data.features.columns: [{listed(before, 40)}], or "


def unscaled_columns(bench: Workbench) -> str:
    """Which columns of a table, and what to do, in a sentence; empty where there is nothing to say.

    The size of a column is its root mean square over the training rows: that is what its part of
    the curvature goes with, squared.
    """
    dataset = bench.require("dataset")
    names = feature_names(bench) if len(dataset.attrs["feature_dims"]) == 1 else []
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
    """Root mean squares of the columns by the rows' weights, from blocks of the rows."""
    squares, total = np.zeros(dataset.variables["train_x"].shape[1:]), 0.0
    is_weighted = "train_weight" in dataset.variables
    for rows in pieces(0, len(valid), AT_ONCE):
        counts = dataset.read("train_weight", rows) if is_weighted else np.ones(len(valid[rows]))
        exists = valid[rows] & (counts > 0)
        x = dataset.read("train_x", rows)[exists].astype(np.float64)
        squares += np.tensordot(counts[exists], np.square(x), 1)
        total += counts[exists].sum()
    return np.sqrt(squares / total)


def _listed(names: list[str], sizes: np.ndarray, which: np.ndarray) -> str:
    return ", ".join(f"{names[k]!r} (about {sizes[k]:.2g})" for k in which)
