"""Versioned arrays: layouts, plans, drafts, versions, by backend; plain Zarr for who reads them."""

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
from influence_dag.store.memory import MemoryStore
from influence_dag.store.opening import open_store
from influence_dag.store.plans import Expected, Plan
from influence_dag.store.posix.versions import ArtifactStore
from influence_dag.store.protocol import Draft, Store, Version
from influence_dag.store.soundness import Damage

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
    "MemoryStore",
    "Plan",
    "Store",
    "Variable",
    "Version",
    "feature_chunks",
    "open_store",
    "pair_chunks",
    "row_chunks",
]
