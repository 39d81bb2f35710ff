"""Versioned arrays on disk: fingerprints, layouts, plans, drafts, versions."""

from influence_dag.store.differences import Change, Difference
from influence_dag.store.fingerprints import (
    KEY_BYTES,
    Keys,
    as_keys,
    chunk_keys,
    combine,
    fingerprint,
    grid_keys,
    row_fingerprints,
)
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
    "KEY_BYTES",
    "ArtifactStore",
    "Change",
    "ChunkIndex",
    "Coordinate",
    "Damage",
    "Difference",
    "Draft",
    "Expected",
    "Keys",
    "Layout",
    "Plan",
    "Variable",
    "Version",
    "as_keys",
    "chunk_keys",
    "combine",
    "feature_chunks",
    "fingerprint",
    "grid_keys",
    "pair_chunks",
    "row_chunks",
    "row_fingerprints",
]
