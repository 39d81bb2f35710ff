"""What a materialisation was made from and what it changed: rows, and numbers that moved most."""

import math
from typing import Any

import dagster as dg

from influence_dag.stages import naming
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store.differences import Difference
from influence_dag.texts import listed, literal

COMPARED = 50_000_000  # numbers in changed chunks, above which they are not read again to compare
MOVED = 10  # rows that are named, and entries in the table of those that moved most


def changes(bench: Workbench, update: Update) -> dict[str, Any]:
    """Against the version before: rows by their ids, and for influences what moved most.

    Empty when nothing was computed, and for a first version.
    """
    earlier = [v for v in bench.store.versions(update.artifact) if v.number < update.version]
    if update.is_current or not earlier:
        return {}
    difference = Difference(earlier[-1], bench.require(update.artifact))
    told = {"compared_with_version": difference.before.number, **_rows(difference)}
    if update.artifact.rpartition("/")[2] == "influences":
        told |= _moved(difference)
    return told


def made_from(bench: Workbench, update: Update, method: str | None) -> dict[str, str]:
    """The θ and the curvature behind a method's artifact, the rows that they saw, the policies."""
    if method is None:
        return {}
    current, policies = bench.axis("dataset", "train").fingerprint, bench.settings
    pairs = {
        "model": ("model", policies.model.refit, "trained_on_rows"),
        "curvature": (naming.curvature(method), policies.curvature.refresh, "n_train"),
    }
    told = {}
    for what, (artifact, policy, rows) in pairs.items():
        version = bench.require(artifact)
        if what == "model" and bench.settings.model.fit is None:
            told[what] = f"version {version.number}, a checkpoint as it is"
        elif artifact != update.artifact:
            count = version.attrs.get(rows) or version.attrs["info"][rows]
            same = "" if version.attrs["train_rows"] == current else "other than "
            rows_seen = f"from {count:,} rows, {same}the current ones"
            told[what] = f"version {version.number}, {rows_seen} ({policy})"
    return told


def _rows(change: Difference) -> dict[str, Any]:
    """`train_rows_changed: 3: train-0004, train-0007, train-1204`, and the like."""
    kinds = {"added": change.added, "removed": change.removed, "changed": change.changed}
    return {
        f"{dim}_rows_{kind}": f"{len(labels)}: {listed(labels, MOVED)}"
        for dim in ("train", "test")
        for kind, by_dim in kinds.items()
        if (labels := by_dim.get(dim))
    }


def _moved(difference: Difference) -> dict[str, Any]:
    variable = difference.after.variables["influences"]
    if len(difference.chunks["influences"]) * math.prod(variable.chunks) > COMPARED:
        return {"moved_most": "not looked for among so many numbers; `influence-dag diff` does"}
    records = [
        dg.TableRecord(
            {
                **{dim: literal(label) for dim, label in change.labels.items()},
                "before": f"{change.before:+.4g}",
                "after": f"{change.after:+.4g}",
            }
        )
        for change in difference.largest_changes("influences", MOVED)
    ]
    return {"moved_most": dg.MetadataValue.table(records)} if records else {}
