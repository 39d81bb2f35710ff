"""Whether what is stored of a method is of the rows, θ and curvature that are stored beside it."""

import warnings
from contextlib import suppress

from influence_dag.datasets.slots import SPLITS, Axis, StoredAxis
from influence_dag.errors import StoreError
from influence_dag.stages import naming
from influence_dag.stages.minimum import measured_before
from influence_dag.store import Store, Version


def warn_of_older(store: Store, version: Version) -> None:
    """Warn where the artifact, current as it is, is of another age than what it is read beside.

    So are artifacts of a method that the study no longer has, and those that a refresh has not come
    to (yet): they stay what they were, and are read with rows that are not theirs.
    """
    newer: dict[str, str] = {}
    with suppress(StoreError):  # what is damaged beside it is told to who asks for it
        newer = newer_beside(store, version)
    if newer:
        warnings.warn(
            f"{store.address}: {version.artifact} was computed before "
            f"{' and '.join(newer.values())}; "
            "materialise the study again (what is of a method or a setting that it no longer has "
            "stays as it was)",
            RuntimeWarning,
            stacklevel=4,
        )


def newer_beside(store: Store, version: Version) -> dict[str, str]:
    """What is stored beside the artifact and is not what it was computed from: in a word, in words.

    λ and settings of a method are those of its factors.
    """
    if "model_data_version" not in version.attrs:
        return {}
    method = version.artifact.partition("/")[0]
    beside = {
        "θ": (naming.MODEL, "model_data_version"),
        "curvature": (naming.curvature(method), "curvature_data_version"),
    }
    if "curvature_data_version" in version.attrs:  # it is made of factors
        beside["λ"] = naming.factors(method), "damping"
        beside["settings of the method"] = naming.factors(method), "method_settings"
    newer, told = dict[str, str](), set[str]()
    for what, (artifact, name) in beside.items():
        other = store.current(artifact)
        if other is None or name not in version.attrs or artifact in told:
            continue
        now = other.data_version if name.endswith("data_version") else other.attrs.get(name)
        if now != version.attrs[name]:
            newer[what] = f"the stored {artifact}"
            told.add(artifact)
    rows = _other_rows(store.version("dataset"), version)
    return newer | {f"{split} rows": f"the {split} rows that are stored" for split in rows}


def matrix_behind(store: Store, curvature: Version, kind: str) -> Version | None:
    """The stored matrix of the θ and the rows that a method's curvature is of.

    That of a method which a study no longer has stays as it was, and is another's.
    """
    matrix = store.current(kind)
    if (
        matrix is None
        or matrix.attrs["model_data_version"] != curvature.attrs["model_data_version"]
    ):
        return None
    seen = Axis.read(matrix, "train").fingerprint
    return matrix if seen == curvature.attrs["train_rows"] else None


def _other_rows(dataset: Version, version: Version) -> list[str]:
    return [
        split
        for split in SPLITS
        if f"{split}_key" in version.coordinates
        and StoredAxis.of(version, split) != StoredAxis.of(dataset, split)
        and Axis.read(version, split).fingerprint != Axis.read(dataset, split).fingerprint
    ]


def theta_measured(store: Store) -> str:
    """Which rows the numbers beside θ are of; empty where they are those that there are now."""
    dataset = store.version("dataset")
    return measured_before(store.version("model"), *(Axis.read(dataset, each) for each in SPLITS))
