"""How a new version begins: what is unchanged is linked from the current one, the rest written."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from influence_dag.files import link_or_copy
from influence_dag.fingerprints import Keys
from influence_dag.store.arrays import chunk_file, create_variable
from influence_dag.store.chunks import write_array
from influence_dag.store.layout import Layout
from influence_dag.store.plans import carry, chunk_indices, is_present
from influence_dag.store.results import Results

if TYPE_CHECKING:
    from influence_dag.store.published import Version


def clone(base: "Version | None", layout: Layout, folder: Path) -> Results:
    """Fill a new folder with a layout and with all that is still right of a version.

    Chunks are hard links under the new shape's metadata; files are replaced rather than written
    into, so the older version never sees what is written to the clone. Returns the results
    that were carried along.
    """
    folder.mkdir()
    damaged = {damage.file.split("/")[0] for damage in base.damaged_files()} if base else set()
    stored = base.parts if base else {}
    kept = {name for name, part in layout.parts.items() if stored.get(name) == part} - damaged
    for variable in layout.variables:
        if base and variable.name in kept:
            _link(base, folder, [base.path / variable.name / "zarr.json"])
        else:
            create_variable(folder, variable)
    for item in layout.coordinates:
        if base and item.name in kept:
            _link(base, folder, _published_files(base, item.name))
        else:
            write_array(folder, item)
    if base is None:
        return Results()
    for variable in layout.variables:
        _link_chunks(base.path, folder, variable.name, carry(base, variable)[0])
    return _link_results(base, layout, folder, damaged)


def _link(base: "Version", folder: Path, files: Iterable[Path | str]) -> None:
    """Files of a version under the same names in a new folder."""
    for file in files:
        target = folder / os.path.relpath(file, base.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, target)


def _published_files(base: "Version", array: str) -> list[Path]:
    """The files of a coordinate or a result: those that were published, whatever lies beside."""
    return [base.path / name for name in base.manifest["files"] if name.startswith(f"{array}/")]


def _link_chunks(source: Path, target: Path, variable: str, keys: Keys) -> None:
    for index in chunk_indices(is_present(keys)):
        file = chunk_file(variable, index)
        link_or_copy(f"{source}/{file}", f"{target}/{file}")


def _link_results(base: "Version", layout: Layout, folder: Path, damaged: set[str]) -> Results:
    if not _same_computation(base, layout):
        return Results()
    results = base.results.without([*layout.parts, *damaged])
    for name in results.arrays:
        _link(base, folder, _published_files(base, name))
    _link(base, folder, [base.path / name for name in results.files])
    return results


def _same_computation(base: "Version", layout: Layout) -> bool:
    """Whether results of a version are still true if no chunk has to be written.

    Removing rows may leave every remaining chunk right, but not what was computed from all.
    """
    if not layout.variables:
        return base.layout_fingerprint == layout.fingerprint
    shapes = {name: variable.shape for name, variable in base.variables.items()}
    return (
        shapes == {variable.name: variable.shape for variable in layout.variables}
        and base.sizes == layout.sizes
        and all(map(base.encodes_like, layout.variables))
    )
