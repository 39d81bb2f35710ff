"""How a new version begins: what is unchanged is linked from the current one, the rest written."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from influence_dag.fingerprints import Keys
from influence_dag.store.arrays import METADATA, chunk_file, create_variable
from influence_dag.store.chunks import write_array
from influence_dag.store.contents import Unfinished
from influence_dag.store.layout import Layout
from influence_dag.store.manifests import Results
from influence_dag.store.plans import carry, chunk_indices, is_present

if TYPE_CHECKING:
    from influence_dag.store.published import StoredVersion


def clone(base: "StoredVersion | None", layout: Layout, contents: Unfinished) -> Results:
    """Fill empty contents with a layout and with all that is still right of a version.

    Chunks are linked under the new shape's metadata; files are replaced rather than written
    into, so the older version never sees what is written to the clone. Returns the results
    that were carried along.
    """
    damaged = {damage.file.split("/")[0] for damage in base.damaged_files()} if base else set()
    stored = base.parts if base else {}
    kept = {name for name, part in layout.parts.items() if stored.get(name) == part} - damaged
    for variable in layout.variables:
        if base and variable.name in kept:
            _link(base, contents, [f"{variable.name}/{METADATA}"])
        else:
            create_variable(contents, variable)
    for item in layout.coordinates:
        if base and item.name in kept:
            _link(base, contents, _published_files(base, item.name))
        else:
            write_array(contents, item)
    if base is None:
        return Results()
    for variable in layout.variables:
        _link(base, contents, _chunks(variable.name, carry(base, variable)[0]))
    return _link_results(base, layout, contents, damaged)


def describe_again(layout: Layout, contents: Unfinished) -> None:
    """Write labels and metadata into what an interrupted run left: of these no journal tells."""
    for variable in layout.variables:
        create_variable(contents, variable)
    for item in layout.coordinates:
        write_array(contents, item)


def _link(base: "StoredVersion", contents: Unfinished, files: Iterable[str]) -> None:
    """Files of a version under the same names in a new one."""
    for file in files:
        contents.link(base.contents, file)


def _published_files(base: "StoredVersion", array: str) -> list[str]:
    """The files of a coordinate or a result: those that were published, whatever lies beside."""
    return [name for name in base.manifest["files"] if name.startswith(f"{array}/")]


def _chunks(variable: str, keys: Keys) -> Iterable[str]:
    """The files of the chunks that have a key."""
    return (chunk_file(variable, index) for index in chunk_indices(is_present(keys)))


def _link_results(
    base: "StoredVersion", layout: Layout, contents: Unfinished, damaged: set[str]
) -> Results:
    if not _same_computation(base, layout):
        return Results()
    results = base.results.without([*layout.parts, *damaged])
    for name in results.arrays:
        _link(base, contents, _published_files(base, name))
    _link(base, contents, results.files)
    return results


def _same_computation(base: "StoredVersion", layout: Layout) -> bool:
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
