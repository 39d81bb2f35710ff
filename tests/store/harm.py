"""Files of a version, harmed as a backend's own tests can: `Backend.damage` and `Backend.rot`."""

import os
from dataclasses import replace
from pathlib import Path

from influence_dag.store import Version
from influence_dag.store.memory import Memory
from influence_dag.store.testing import Edit


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
