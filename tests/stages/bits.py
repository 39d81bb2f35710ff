"""A study refreshed by an executor, and whether two stores hold the same bits."""

import numpy as np

from influence_dag.stages.graph import artifacts
from influence_dag.stages.workbench import Workbench
from influence_dag.store import ArtifactStore
from influence_dag.study.loading import load_study


def refresh(folder, executor=None, *, until: str = "report") -> list[str]:
    """Every stage in order, up to the one that makes `until`; what was reported."""
    said: list[str] = []
    bench = Workbench(load_study(folder), said.append, executor=executor)
    for node in artifacts(bench.study):
        node.refresh(bench)
        if node.name == until:
            break
    return said


def assert_same_bits(one: ArtifactStore, other: ArtifactStore) -> None:
    """Every array of every artifact, their keys, and what they are called."""
    assert one.names() == other.names()
    for name in one.names():
        a, b = one.version(name), other.version(name)
        assert a.data_version == b.data_version, name
        assert a.variables.keys() == b.variables.keys()
        for variable in a.variables:
            assert a.read(variable).tobytes() == b.read(variable).tobytes(), (name, variable)
            np.testing.assert_array_equal(a.keys(variable), b.keys(variable))
