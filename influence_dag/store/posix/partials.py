"""An unfinished version: what it is called, and what it was begun for."""

from pathlib import Path

from influence_dag.files import boot_id
from influence_dag.store.layout import Layout
from influence_dag.store.published import StoredVersion
from influence_dag.store.versioned import begun_for

JOURNALS = ".partial-*.journal"


def header(layout: Layout, base: StoredVersion | None) -> dict[str, object]:
    """What its journal begins with: a run with another one begins anew."""
    return {"format": 1, **begun_for(layout, base), "boot": boot_id()}


def published_path(partial: Path) -> Path:
    """The folder that it will be."""
    return partial.with_name(partial.name.removeprefix(".partial-"))
