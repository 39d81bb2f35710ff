from pathlib import Path

import pytest

pytest.register_assert_rewrite("influence_dag.store.testing")  # before it is imported

from influence_dag.store import ArtifactStore  # noqa: E402


@pytest.fixture(autouse=True)
def fsynced(monkeypatch) -> list[str]:
    """Files and folders that were fsynced, in order; without the wait for a shared disk."""
    paths: list[str] = []
    for module in ("files", "store.posix.versions"):
        monkeypatch.setattr(f"influence_dag.{module}.sync", lambda path: paths.append(str(path)))
    return paths


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", lock_timeout=0.2)
