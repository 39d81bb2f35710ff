"""What every backend of the store promises, asked of each."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from influence_dag.store import Version
from influence_dag.store.memory import Memory, discard
from influence_dag.store.testing import Backend, Edit, StoreContract


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


def damage_file(version: Version, file: str, edit: Edit) -> None:
    path = Path(version.address) / file
    content = edit(path.read_bytes())
    path.unlink()  # another file: older versions may have a link to this one
    if content is not None:
        path.write_bytes(content)


def rot_file(version: Version, file: str, edit: Edit) -> None:
    path = Path(version.address) / file
    times = path.stat()
    content = edit(path.read_bytes())
    assert content is not None
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def contents_of(version: Version) -> Memory:
    contents = version.contents  # type: ignore[attr-defined]
    assert isinstance(contents, Memory)
    return contents


def damage_memory(version: Version, file: str, edit: Edit) -> None:
    files = contents_of(version).files
    content = edit(files.pop(file).content)
    if content is not None:
        contents_of(version).write(file, content)


def rot_memory(version: Version, file: str, edit: Edit) -> None:
    files = contents_of(version).files
    content = edit(files[file].content)
    assert content is not None
    files[file] = replace(files[file], content=content)
