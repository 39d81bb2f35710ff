"""How a finished draft becomes a version: leftovers go, bookkeeping and metadata come."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.fingerprints import fingerprint
from influence_dag.store import arrays
from influence_dag.store.layout import Variable
from influence_dag.store.manifests import BLOCKS, FORMAT, KEYS, MANIFEST, STAMPS, UNKNOWN, sealed
from influence_dag.store.npz import packed

if TYPE_CHECKING:
    from influence_dag.store.drafts import StoredDraft


def finish(draft: "StoredDraft") -> None:
    """Turn a draft's contents into a complete version, in place; only its name is provisional."""
    results = draft.results
    draft.contents.sweep({arrays.METADATA, *_arrays(draft), *results.files})
    data_version = _data_version(draft)
    try:
        draft.contents.write(BLOCKS, _bookkeeping(draft))
        members = {name: _metadata(draft, name) for name in sorted(_arrays(draft))}
        _write_group(draft, data_version, members)
        manifest = _manifest(draft, data_version, _small_files(draft, members))
        draft.contents.write(MANIFEST, sealed(manifest))
    except arrays.VanishedError:  # or every run would resume it, and miss the same file
        draft.forget()
        raise
    try:
        draft.contents.settle()
    except Exception:  # what of it is safe nobody knows now
        draft.forget()
        raise


def _arrays(draft: "StoredDraft") -> list[str]:
    """Names of all arrays: variables, coordinates, results."""
    layout = (*draft.layout.variables, *draft.layout.coordinates)
    return [*(item.name for item in layout), *draft.results.arrays]


def _data_version(draft: "StoredDraft") -> str:
    keys = {variable.name: draft.keys(variable.name) for variable in draft.layout.variables}
    return fingerprint(draft.layout.fingerprint, keys)


def _bookkeeping(draft: "StoredDraft") -> bytes:
    blocks = {}
    for variable in draft.layout.variables:
        blocks[f"{variable.name}.{KEYS}"] = draft.keys(variable.name)
        blocks[f"{variable.name}.{STAMPS}"] = _stamps(draft, variable)
    return packed(blocks)


def _stamps(draft: "StoredDraft", variable: Variable) -> np.ndarray:
    """Stamp and checksum of every chunk's file, `(*grid, 3)`."""
    stamps = np.empty((*variable.grid, 3), np.int64)
    stamps[..., 2] = draft.checksums(variable.name)
    for index in np.ndindex(variable.grid):
        file = arrays.chunk_file(variable.name, index)
        seen = draft.contents.stamp(file)
        if seen is None:
            raise arrays.vanished(draft.contents, file)
        stamps[index][:2] = seen
        if stamps[index][2] == UNKNOWN:
            stamps[index][2] = arrays.last_checksum(arrays.written(draft.contents, file))
    return stamps


def _metadata(draft: "StoredDraft", array: str) -> dict[str, Any]:
    """What is to be said of an array: readers take it from the group's file, which is a new one.

    What has rotted in the version before, unseen, does not become right by being said again.
    """
    file = f"{array}/{arrays.METADATA}"
    content = arrays.written(draft.contents, file)
    seen = draft.contents.stamp(file)
    known = _linked_checksum(draft, file, seen) if seen else None
    try:
        if known is None or arrays.checksum(file, content) == known:
            return json.loads(content)
    except ValueError:  # of an interrupted run
        pass
    if draft.base is not None and known is not None:
        draft.base.contents.doubt(file)
    raise arrays.vanished(draft.contents, file, "was damaged")


def _write_group(draft: "StoredDraft", data_version: str, members: dict[str, Any]) -> None:
    layout, results = draft.layout, draft.results
    coordinates = [variable.name for variable in layout.variables if variable.coordinate]
    coordinates += [item.name for item in layout.coordinates] + list(results.arrays)
    attributes = {
        **layout.attrs,
        **results.attrs,
        **layout.provenance,
        "data_version": data_version,
        "layout_fingerprint": layout.fingerprint,
    }
    if coordinates:
        attributes["coordinates"] = " ".join(coordinates)  # as xarray marks them
    arrays.write_group(draft.contents, attributes, members)


def _manifest(
    draft: "StoredDraft", data_version: str, small_files: dict[str, tuple[int, int, int]]
) -> dict[str, Any]:
    variables = {
        variable.name: {"shape": list(variable.shape), "encoding": variable.encoding}
        for variable in draft.layout.variables
    }
    return {
        "format": FORMAT,
        "artifact": draft.artifact,
        "layout_fingerprint": draft.layout.fingerprint,
        "data_version": data_version,
        "variables": variables,
        "parts": draft.layout.parts,
        "sizes": draft.layout.sizes,
        "results": draft.results.to_json(),
        "files": small_files,
    }


def _small_files(draft: "StoredDraft", members: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Stamp and checksum of every file that is not a chunk of a variable.

    Files that are links to those of the version before keep the checksum that they have there: what
    rotted since then does not become right.
    """
    files = {}
    for name in _small_names(draft, members):
        seen = draft.contents.stamp(name)
        if seen is None:
            raise arrays.vanished(draft.contents, name)
        known = _linked_checksum(draft, name, seen)
        files[name] = (
            *seen,
            arrays.checksum(name, arrays.written(draft.contents, name)) if known is None else known,
        )
    return files


def _small_names(draft: "StoredDraft", members: dict[str, Any]) -> Iterator[str]:
    yield from (arrays.METADATA, BLOCKS, *draft.results.files)
    yield from (f"{name}/{arrays.METADATA}" for name in members)
    chunked = {variable.name for variable in draft.layout.variables}
    for name, told in members.items():
        if name not in chunked and 0 not in told["shape"]:  # of nothing there is no chunk
            yield arrays.chunk_file(name, (0,) * len(told["shape"]))


def _linked_checksum(draft: "StoredDraft", name: str, seen: tuple[int, int]) -> int | None:
    """What the version before says of a file, if it is the same one and as it was published."""
    base = draft.base
    known = base.manifest["files"].get(name) if base else None
    if base is None or known is None or seen != tuple(known[:2]):
        return None
    return known[2] if draft.contents.shares(base.contents, name) else None
