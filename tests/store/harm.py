"""Files of a version, harmed as a backend's own tests can: `Backend.damage` and `Backend.rot`."""

import os
from dataclasses import replace
from pathlib import Path

from influence_dag.store import Version
from influence_dag.store.icechunk.contents import Kept
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


def damage_repository(version: Version, file: str, edit: Edit) -> None:
    """Below Icechunk: the object that holds the file's content is another one, or is gone."""
    kept = kept_in(version)
    path, content = object_of(kept, file)
    edited = edit(content)
    if edited is None:
        kept.repository.place.files.rm_file(path)
    else:
        kept.repository.place.files.pipe_file(path, edited)
    kept.repository.look_again()  # time passes


def rot_repository(version: Version, file: str, edit: Edit) -> None:
    path, content = object_of(kept_in(version), file)
    edited = edit(content)
    assert edited is not None
    times = os.stat(path)
    with open(path, "r+b") as stream:
        stream.write(edited)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept_in(version).repository.look_again()


def kept_in(version: Version) -> Kept:
    contents = version.contents  # type: ignore[attr-defined]
    assert isinstance(contents, Kept)
    return contents


def object_of(kept: Kept, file: str) -> tuple[str, bytes]:
    """Where a file's content is: of objects that hold the same the one without which it is gone."""
    place, content = kept.repository.place, kept.read(file)
    assert content is not None
    chunks = place.files.find(place.at(f"{kept.repository.artifact}/versions/chunks"))
    same = [path for path in chunks if place.files.cat_file(path) == content]
    for path in same if len(same) > 1 else ():
        place.files.mv(path, f"{path}-away")
        is_there = kept.has(file)
        place.files.mv(f"{path}-away", path)
        if not is_there:
            return path, content
    (path,) = same
    return path, content
