"""Whether what is stored of a method is of the rows, θ and curvature that are stored beside it."""

import warnings
from contextlib import suppress

from influence_dag.datasets.slots import SPLITS, Axis, StoredAxis
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.store import Store, Version


def warn_of_older(store: Store, version: Version) -> None:
    """Warn where the artifact, current as it is, is of another age than what it is read beside.

    So are artifacts of a method that the study no longer has, and those that a refresh has not come
    to (yet): they stay what they were, and are read with rows that are not theirs.
    """
    newer: list[str] = []
    with suppress(StoreError):  # what is damaged beside it is told to who asks for it
        newer = _newer(store, version)
    if newer:
        warnings.warn(
            f"{store.address}: {version.artifact} was computed before {' and '.join(newer)}; "
            "materialise the study again (what is of a method or a setting that it no longer has "
            "stays as it was)",
            RuntimeWarning,
            stacklevel=4,
        )


def _newer(store: Store, version: Version) -> list[str]:
    """What is stored beside the artifact and is not what it was computed from, in words."""
    if "model_data_version" not in version.attrs:
        return []
    stored, method = set(store.names()), version.artifact.partition("/")[0]
    beside = {"model": naming.MODEL, "curvature": naming.curvature(method)}
    newer = [
        f"the stored {artifact}"
        for what, artifact in beside.items()
        if artifact in stored
        and f"{what}_data_version" in version.attrs
        and version.attrs[f"{what}_data_version"] != store.version(artifact).data_version
    ]
    return newer + _other_rows(store.version("dataset"), version)


def _other_rows(dataset: Version, version: Version) -> list[str]:
    return [
        f"the {split} rows that are stored"
        for split in SPLITS
        if f"{split}_key" in version.coordinates
        and StoredAxis.of(version, split) != StoredAxis.of(dataset, split)
        and Axis.read(version, split).fingerprint != Axis.read(dataset, split).fingerprint
    ]
