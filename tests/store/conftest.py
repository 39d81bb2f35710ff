from pathlib import Path

import pytest

pytest.register_assert_rewrite("influence_dag.store.testing")  # before it is imported

from influence_dag.store import ArtifactStore  # noqa: E402

# The contract of a backend that is slow is asked whole in `make campaign`; of each kind of promise
# one is asked always.
SLOW = ("TestIcechunk", "TestBuckets")
ALWAYS = (
    "test_a_second_writer_is_refused_with_the_name_of_the_first",
    "test_what_an_interrupted_run_left_never_reaches_a_run_for_other_data[another row]",
    "test_what_was_finished_is_found_again_whatever_it_is_called",
    "test_rot_that_no_stamp_tells_is_found_by_checksums",
    "test_a_damaged_chunk_is_found_and_computed_again[removed]",
    "test_a_changed_shape_computes_only_what_it_touches[fewer columns in a chunk]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = getattr(getattr(item, "cls", None), "__name__", "")
        if kind in SLOW and not (kind == SLOW[0] and item.name in ALWAYS):
            item.add_marker(pytest.mark.campaign)


@pytest.fixture(autouse=True)
def fsynced(monkeypatch) -> list[str]:
    """Files and folders that were fsynced, in order; without the wait for a shared disk."""
    paths: list[str] = []
    for module in ("durable", "versions"):
        monkeypatch.setattr(
            f"influence_dag.store.posix.{module}.sync", lambda path: paths.append(str(path))
        )
    return paths


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", lock_timeout=0.2)
