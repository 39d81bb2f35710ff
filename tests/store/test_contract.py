"""What every backend of the store promises, asked of each."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harm import (
    damage_file,
    damage_memory,
    damage_repository,
    rot_file,
    rot_memory,
    rot_repository,
)

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


class TestIcechunk(StoreContract):
    """In a folder that stands for a bucket; most of it in `make campaign` (`conftest.py`)."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        pytest.importorskip("icechunk")
        address = f"icechunk+file://{tmp_path}/studies/tiny"
        return Backend(address, damage_repository, rot_repository)


class TestBuckets(StoreContract):
    """Of an S3 that is a server on loopback; most of it in `make campaign`."""

    @pytest.fixture
    def backend(self, bucket: str) -> Backend:
        pytest.importorskip("icechunk")
        pytest.importorskip("s3fs")
        address = f"{bucket}/{uuid.uuid4().hex}/tiny"
        return Backend(address, damage_repository, no_rot)


def no_rot(*_: object) -> None:
    pytest.skip("S3 hands out nothing that has not the checksum that it was given")
