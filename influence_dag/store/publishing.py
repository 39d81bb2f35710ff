"""How a finished draft becomes a version: bookkeeping, metadata, and everything on the disk."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.errors import StoreError
from influence_dag.files import files_below, make_durable, remove, stamp
from influence_dag.fingerprints import fingerprint
from influence_dag.store.arrays import checksum, chunk_file, last_checksum, write_group
from influence_dag.store.layout import Variable
from influence_dag.store.manifests import BLOCKS, FORMAT, KEYS, MANIFEST, STAMPS, UNKNOWN, sealed
from influence_dag.store.published import Version

if TYPE_CHECKING:
    from influence_dag.store.drafts import Draft


def finish(draft: "Draft") -> None:
    """Turn a draft's folder into a complete version, in place; only its name is provisional."""
    _sweep(draft)
    data_version = _data_version(draft)
    _write_bookkeeping(draft)
    _write_attributes(draft, data_version)
    (draft.folder / MANIFEST).write_bytes(sealed(_manifest(draft, data_version)))
    try:
        make_durable(draft.folder)
    except OSError:  # what the disk has of it nobody knows now
        draft.forget()
        raise


def _sweep(draft: "Draft") -> None:
    """Remove what killed writers left, and results that were dropped."""
    layout = (*draft.layout.variables, *draft.layout.coordinates)
    results = draft.results
    kept = {"zarr.json", *(item.name for item in layout), *results.arrays, *results.files}
    remove(path for path in list(draft.folder.iterdir()) if path.name not in kept)
    remove([Path(path) for path in files_below(draft.folder) if path.endswith(".partial")])


def _data_version(draft: "Draft") -> str:
    keys = {variable.name: draft.keys(variable.name) for variable in draft.layout.variables}
    return fingerprint(draft.layout.fingerprint, keys)


def _write_bookkeeping(draft: "Draft") -> None:
    blocks = {}
    for variable in draft.layout.variables:
        blocks[f"{variable.name}.{KEYS}"] = draft.keys(variable.name)
        blocks[f"{variable.name}.{STAMPS}"] = _stamps(draft, variable)
    np.savez(draft.folder / BLOCKS, **blocks)


def _stamps(draft: "Draft", variable: Variable) -> np.ndarray:
    """Size, time of modification and checksum of every chunk file, `(*grid, 3)`."""
    stamps = np.empty((*variable.grid, 3), np.int64)
    stamps[..., 2] = draft.checksums(variable.name)
    for index in np.ndindex(variable.grid):
        file = f"{draft.folder}/{chunk_file(variable.name, index)}"
        seen = stamp(file)
        if seen is None:
            raise StoreError(f"{file} vanished before it was published; run again")
        stamps[index][:2] = seen
        if stamps[index][2] == UNKNOWN:
            stamps[index][2] = last_checksum(file)
    return stamps


def _write_attributes(draft: "Draft", data_version: str) -> None:
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
    write_group(draft.folder, attributes)


def _manifest(draft: "Draft", data_version: str) -> dict[str, Any]:
    variables = {
        variable.name: {"shape": list(variable.shape), "encoding": variable.encoding}
        for variable in draft.layout.variables
    }
    return {
        "format": FORMAT,
        "layout_fingerprint": draft.layout.fingerprint,
        "data_version": data_version,
        "variables": variables,
        "parts": draft.layout.parts,
        "sizes": draft.layout.sizes,
        "results": draft.results.to_json(),
        "files": _small_files(draft, variables),
    }


def _small_files(draft: "Draft", variables: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Size, time of modification and checksum of every file that is not a chunk of a variable.

    Files that are links to those of the version before keep the checksum that they have there: what
    rotted since then does not become right.
    """
    files = {}
    for path in files_below(draft.folder):
        name = os.path.relpath(path, draft.folder)
        parent, _, file = name.rpartition("/")
        if parent in variables and file != "zarr.json":
            continue
        size, modified = stamp(path) or (0, 0)
        known = _linked_checksum(draft.base, name, path)
        if known is None:
            known = checksum(name, Path(path).read_bytes())
        files[name] = (size, modified, known)
    return files


def _linked_checksum(base: Version | None, name: str, path: str) -> int | None:
    """What the version before says of a file, if it is the same one and as it was published."""
    known = base.manifest["files"].get(name) if base else None
    if base is None or known is None or stamp(path) != tuple(known[:2]):
        return None
    return known[2] if os.path.samefile(path, base.path / name) else None
