"""Versioned arrays on disk: layouts, plans, drafts, versions; plain Zarr for whoever reads them."""

from influence_dag.store.differences import Change, Difference
from influence_dag.store.layout import (
    ChunkIndex,
    Coordinate,
    Layout,
    Variable,
    feature_chunks,
    pair_chunks,
    row_chunks,
)
from influence_dag.store.plans import Expected, Plan
from influence_dag.store.published import Version
from influence_dag.store.soundness import Damage
from influence_dag.store.versions import ArtifactStore, Draft

__all__ = [
    "ArtifactStore",
    "Change",
    "ChunkIndex",
    "Coordinate",
    "Damage",
    "Difference",
    "Draft",
    "Expected",
    "Layout",
    "Plan",
    "Variable",
    "Version",
    "feature_chunks",
    "pair_chunks",
    "row_chunks",
]
