"""What a materialisation shows: shape, chunks, bytes, seconds, solver info, and a picture.

`WHY` says what pictures show, and why one looks at them.
"""

from typing import Any

import dagster as dg
import numpy as np

from influence_dag.components.changes import changes, made_from
from influence_dag.components.keys import DATA_VERSION_TAG
from influence_dag.datasets.slots import SPLITS, Axis
from influence_dag.stages.artifacts import Artifact, Picture
from influence_dag.stages.sampling import values_of_rows
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

_FAILED = "picture"  # under which it is told that one could not be drawn


def materialize_result(
    context: dg.AssetExecutionContext,
    bench: Workbench,
    node: Artifact,
    update: Update,
    tags: dict[str, str] | None = None,
) -> dg.MaterializeResult:
    """The result of one asset: its data version and everything worth seeing about it.

    Pictures cost more than a refresh that finds nothing to do: they are drawn once a version, and
    not at all when the run is not recorded.
    """
    version, metadata = bench.require(update.artifact), {}
    if node.picture and not context.instance.is_ephemeral:
        metadata = _drawn_before(context, node.picture, update)
        if metadata is None:
            metadata = _drawn(context, node.picture, bench, version, node.method)
    if not context.instance.is_ephemeral:
        metadata |= changes(bench, update) | made_from(bench, update, node.method)
    info = {name: value for name, value in _info(update).items() if name not in metadata}
    metadata |= info | _solves(version) | _charted(bench, version, update.info)
    metadata |= _numbers(update) | _arrays(version)
    metadata |= _row_count(version)
    data_version = dg.DataVersion(update.data_version)
    return dg.MaterializeResult(data_version=data_version, metadata=metadata, tags=tags)


def _drawn(context: dg.AssetExecutionContext, picture: Picture, *of: Any) -> dict[str, Any]:
    """The pictures, or a line that says why not: the numbers are stored, and sound without them."""
    try:
        return {name: _shown(name, value) for name, value in picture.drawn(*of).items()}
    except Exception as error:
        said = f"{type(error).__name__}: {error!s:.300}"
        context.log.warning(f"the picture of this version could not be drawn: {said}")
        return {_FAILED: f"could not be drawn: {said}"}


def _shown(name: str, value: str | list[dict[str, str]]) -> dg.MetadataValue:
    """A table, or a picture with what it shows, and why it matters, below it."""
    if isinstance(value, str):
        return dg.MetadataValue.md(f"{value}\n\n{WHY[name]}" if name in WHY else value)
    records = [dg.TableRecord(row) for row in value]
    return dg.MetadataValue.table(records) if records else dg.MetadataValue.text("one method")


def _drawn_before(
    context: dg.AssetExecutionContext, picture: Picture, update: Update
) -> dict[str, Any] | None:
    """The pictures of the last materialisation, which may be none, if it was of the same data."""
    event = context.instance.get_latest_materialization_event(context.asset_key)
    last = event.asset_materialization if event else None
    if last is None or (last.tags or {}).get(DATA_VERSION_TAG) != update.data_version:
        return None
    if _FAILED in last.metadata:
        return None
    return {name: value for name, value in last.metadata.items() if name in picture.names}


def _numbers(update: Update) -> dict[str, Any]:
    return {
        "version": update.version,
        "path": dg.MetadataValue.path(update.address),
        "blocks_computed": update.blocks_computed,
        "blocks_reused": update.blocks_reused,
        "bytes_written": update.bytes_written,
        "reasons": update.why or "current",
        "seconds": round(update.seconds, 3),
    }


def _row_count(version: Version) -> dict[str, int]:
    """Rows of the artifact: of the dataset those of both splits, else those on its first axis."""
    splits = [split for split in SPLITS if f"{split}_valid" in version.coordinates]
    if version.artifact != "dataset":
        dims = [dim for each in version.variables.values() for dim in each.dims]
        leading = (split for split in splits if split in dims)
        splits = sorted(leading, key=lambda split: dims.index(split))[:1]
    counts = [int(np.sum(version.coordinate(f"{split}_valid") != 0)) for split in splits]
    return {"dagster/row_count": sum(counts)} if counts else {}


def _arrays(version: Version) -> dict[str, Any]:
    """Shape and chunks of every array, as a table; nothing of an artifact without any."""
    if not version.variables:  # the factorisation of a method that needs none
        return {}
    records = [
        dg.TableRecord(
            {
                "array": name,
                "dims": " × ".join(entry.dims),
                "shape": " × ".join(map(str, entry.shape)),
                "chunks": " × ".join(map(str, entry.chunks)),
                "dtype": entry.dtype,
            }
        )
        for name, entry in version.variables.items()
    ]
    return {"arrays": dg.MetadataValue.table(records)}


def _info(update: Update) -> dict[str, Any]:
    return {
        name: dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
        for name, value in update.info.items()
    }


def _solves(version: Version) -> dict[str, Any]:
    """The worst of what the solves noted, which the UI charts from run to run."""
    worst = {"residual": "worst_residual", "niter": "most_iterations"}
    noted = {
        told: values_of_rows(version, name)
        for name, told in worst.items()
        if name in version.variables
    }
    return {told: float(values.max()) for told, values in noted.items() if len(values)}


def _charted(bench: Workbench, version: Version, info: dict[str, Any]) -> dict[str, float]:
    """Numbers inside tables and arrays that one follows from run to run: the UI charts them.

    The mean over training rows is by their weights, as that which the fit minimised.
    """
    charted: dict[str, float] = {}
    for name, score in info.get("scores", {}).items():
        charted[f"lds_{name}"] = float(score["lds"])
    for name, told in info.items():
        if isinstance(told, dict) and "auc" in told:
            charted[f"auc_{name}"] = float(told["auc"])
    for split in SPLITS:
        if f"{split}_loss" in version.variables:
            axis, rows = Axis.read(version, split), bench.require("dataset")
            weights, counted = f"{split}_weight", None
            if weights in rows.variables:
                if axis.fingerprint != bench.axis("dataset", split).fingerprint:
                    continue  # of another age: what its rows weighed is not known any more
                counted = rows.read(weights)[axis.slots]
            losses = version.read(f"{split}_loss")[axis.slots]
            charted[f"mean_{split}_loss"] = float(np.average(losses, weights=counted))
    return {name: value for name, value in charted.items() if np.isfinite(value)}


WHY = {
    "spectrum": (
        "Eigenvalues of the curvature, with the dampings as lines. Directions below a line "
        "are held by the damping more than by the data, so that another λ is another answer "
        "there; negative ones larger than λ would turn the sign of an influence."
    ),
    "convergence": (
        "Residuals of the test rows' solves, sorted; how many steps they took; how residuals fell. "
        "A row above the tolerance has factors that cannot be trusted; many steps say that the "
        "system is badly conditioned."
    ),
    "residuals": (
        "How exactly each test row's system is solved: the residual relative to its right-hand "
        "side. A large one is an error of at least that size in the row's influences."
    ),
    "histogram": (
        "How the influences are spread. Most pairs hardly matter; the tails are the rows to "
        "look at. A wide one-sided tail is one row that rules many predictions."
    ),
    "strongest": (
        "Some test rows, with the training rows that help them most and harm them most. Rows "
        "of the same class should help; one that harms its own class is a suspect."
    ),
    "example": (
        "One pair: what more of each feature of the training row does to the test row's loss. "
        "Blue helps, red harms: the part of the row that the influence comes from."
    ),
    "agreement": (
        "Predicted change of test losses against that of refits, a dot a pair. On the line "
        "the values can be trusted, in its order the ranks; a slope above 1 is the row's own "
        "curvature."
    ),
    "scores": (
        "How well influences rank models that were fitted to random subsets (Spearman), with "
        "95 % intervals. A method that is no better than the baselines says nothing here."
    ),
    "detection": (
        "Share of labels flipped on purpose that are found, against rows looked at. The "
        "earlier a curve rises, the fewer rows have to be looked at in data whose errors "
        "nobody knows."
    ),
}
