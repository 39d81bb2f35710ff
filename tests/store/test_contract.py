"""What every backend of the store promises, asked of each."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harm import damage_file, damage_memory, rot_file, rot_memory

from influence_dag.store.memory import discard
from influence_dag.store.testing import Backend, StoreContract


class TestFolders(StoreContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return Backend(str(tmp_path / "studies" / "tiny"), damage_file, rot_file)


class TestMemory(StoreContract):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        scratch = f"memory://{uuid.uuid4().hex}"
        yield Backend(f"{scratch}/tiny", damage_memory, rot_memory)
        discard(scratch)
