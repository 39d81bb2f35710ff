"""What a version's files are called in a repository: chunks as Icechunk has them, the rest beside.

`influences/c.1.2` is Icechunk's chunk `influences/c/1/2`, the same bytes. An array's metadata are
there twice, since Icechunk takes chunks' names apart at slashes alone: once as Zarr finds them,
once as they were published. So are the group's. These copies, the bookkeeping and added files are
arrays of bytes in the group `influence_dag`.
"""

from influence_dag.store.arrays import METADATA, is_chunk

BESIDE = "influence_dag"


def key_of(name: str) -> str:
    """Where Icechunk has a version's file."""
    if is_chunk(name):
        array, _, chunk = name.rpartition("/")
        return f"{array}/{chunk.replace('.', '/')}"
    return f"{node_of(name)}/c/0"


def node_of(name: str) -> str:
    if name == METADATA:
        return f"{BESIDE}/group"
    if name.endswith(f"/{METADATA}"):
        return f"{BESIDE}/arrays/{name.removesuffix(f'/{METADATA}')}"
    return f"{BESIDE}/files/{name}"


def name_of(key: str) -> str | None:
    """The file that Icechunk has there; None for what is there for other readers."""
    if key.endswith(METADATA):
        return None
    node, _, inside = key.partition("/")
    if node != BESIDE:
        return f"{node}/{inside.replace('/', '.')}"
    kind, _, name = inside.removesuffix("/c/0").partition("/")
    return {"group": METADATA, "arrays": f"{name}/{METADATA}"}.get(kind, name)
