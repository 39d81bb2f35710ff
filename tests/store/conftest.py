from pathlib import Path

import pytest

from influence_dag.store import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", lock_timeout=0.2)
