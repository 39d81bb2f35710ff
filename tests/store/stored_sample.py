"""The contract's small artifact, and what of it is seen in folders alone."""

from influence_dag.store import ArtifactStore, Draft
from influence_dag.store.testing import NAME, Sample, refresh, write_chunk

__all__ = ["NAME", "Sample", "chunk_files", "refresh", "refresh_with_results", "write_chunk"]


def refresh_with_results(store: ArtifactStore, sample: Sample, name: str = NAME) -> Draft:
    """For a stage that has results: set after computing, and where a kill lost them."""
    with store.new_version(name, sample.layout) as draft:
        for index in draft.outdated(sample.expected)["influences"]:
            write_chunk(draft, sample, index)
        if draft.lacks("total"):
            draft.set_result("total", ("test",), sample.values.sum(axis=1))
    return draft


def chunk_files(store: ArtifactStore, number: int | None = None) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every chunk file of a version."""
    files = (store.version(NAME, number).path / "influences").glob("c.*")
    return {path.name.removeprefix("c."): (path.stat().st_ino, path.read_bytes()) for path in files}
