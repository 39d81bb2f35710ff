"""An address becomes a store in one place; a store that lasts as long as its process says so."""

import pickle
from pathlib import Path

import pytest
from stored_sample import NAME, Sample, refresh

from influence_dag.addresses import above, below, folder_of, scheme_of
from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore, MemoryStore, open_store
from influence_dag.store.memory import discard

SAMPLE = Sample()


@pytest.fixture
def in_memory():
    yield "memory://opening/tiny"
    discard("memory://opening")


def test_a_path_is_a_folder_and_a_scheme_says_which_backend(tmp_path, in_memory):
    assert isinstance(open_store(tmp_path), ArtifactStore)
    assert isinstance(open_store(str(tmp_path)), ArtifactStore)
    assert isinstance(open_store(in_memory, lock_timeout=3.0), MemoryStore)


@pytest.mark.parametrize("address", ["gs://bucket/digits", "icechunk://x", "Memory://x"])
def test_an_unknown_kind_of_store_is_no_folder_by_accident(address):
    with pytest.raises(StoreError, match=r"no kind of store that is known .*memory://…"):
        open_store(address)


def test_memory_has_no_lock_files(in_memory):
    with pytest.raises(StoreError, match=r"has no lock files, and locks is 'files'.*leave"):
        open_store(in_memory, locks="files")


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ("memory://scratch", "memory://scratch/digits"),
        ("memory://scratch/", "memory://scratch/digits"),
        ("s3://bucket/prefix", "s3://bucket/prefix/digits"),
        ("/data/store", "/data/store/digits"),
        ("/", "/digits"),
    ],
)
def test_a_study_is_below_the_place_that_settings_name(place, inside):
    assert below(place, "digits") == inside
    assert below(above(inside), "digits") == inside


def test_only_paths_are_folders():
    assert folder_of("memory://x") is None
    assert folder_of(Path("a/b")) == folder_of("a/b") == Path("a/b")
    assert scheme_of("a://b") == "a"
    assert scheme_of("C:/store") == scheme_of("/a://b") == ""


def test_what_is_stored_in_memory_is_there_until_it_is_discarded(in_memory):
    refresh(open_store(in_memory), SAMPLE)
    assert open_store(in_memory).names() == [NAME]
    assert open_store("memory://opening").names() == ["tiny/direct/influences"]
    discard("memory://open")  # another address, which this one only begins with
    assert open_store(in_memory).names() == [NAME]
    discard("memory://opening")
    assert open_store(in_memory).names() == []


def test_what_refers_to_memory_is_not_sent_to_another_process(in_memory):
    dataset = refresh(open_store(in_memory), SAMPLE).version.open()
    with pytest.raises(StoreError, match=r"memory of one process and cannot be pickled.*load"):
        pickle.dumps(dataset)
    loaded = pickle.loads(pickle.dumps(dataset.load()))
    assert loaded.equals(dataset)
