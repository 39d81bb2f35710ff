"""What comes out beside the planned arrays: the contract's part about results and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from influence_dag.errors import StoreError
from influence_dag.store.protocol import Store, Version
from influence_dag.store.testing.sample import (
    ALL_CHUNKS,
    NAME,
    SAMPLE,
    current,
    published,
    write_chunk,
    write_outdated,
)


class ResultsContract:
    """Results stay as long as they must be true: until a chunk is written."""

    def test_results_are_coordinates_attributes_and_files_of_the_version(self, store: Store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)
            draft.set_attrs(condition=np.float32(2.5), spectrum=np.arange(2))
            draft.set_result("niter", ("test",), np.arange(10), {"long_name": "iterations"})
            assert draft.lacks("niter", "model.safetensors")
            draft.add_file("model.safetensors", b"\x00weights")
            assert not draft.lacks("niter", "model.safetensors", "condition")
        version = current(store)
        dataset = version.open()
        assert dataset.attrs["condition"] == 2.5
        assert dataset.attrs["spectrum"] == [0, 1]
        assert dataset.coords["niter"].values.tolist() == list(range(10))
        assert dataset.niter.attrs == {"long_name": "iterations"}
        assert version.file("model.safetensors") == b"\x00weights"
        with pytest.raises(StoreError, match=r"no file 'x'; it has model\.safetensors"):
            version.file("x")

    def test_numbers_that_are_not_finite_are_json_for_every_reader(self, store: Store):
        """JavaScript's parser and Rust's refuse what Python writes for them."""
        info = {"pearson": float("nan"), "ends": [-np.inf, 1.0, np.inf], "name": "NaN"}
        with store.new_version(NAME, SAMPLE.layout) as draft:
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)
            draft.set_attrs(info=info)
        version = current(store)
        for said in (version.attrs["info"], version.open().attrs["info"]):
            assert np.isnan(said["pearson"])
            assert (said["ends"], said["name"]) == ([-np.inf, 1.0, np.inf], "NaN")
        content = sync(version.zarr_store().get("zarr.json", default_buffer_prototype()))
        assert content is not None
        told = json.loads(content.to_bytes(), parse_constant=pytest.fail)
        shown = {"pearson": "NaN", "ends": ["-Infinity", 1.0, "Infinity"], "name": "NaN"}
        assert told["attributes"]["info"] == shown
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_attrs(info=info)
        assert current(store).number == version.number

    @pytest.fixture
    def solved(self, store: Store) -> Version:
        with store.new_version(NAME, SAMPLE.layout) as draft:
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)
            draft.set_attrs(iterations=7)
            draft.set_result("niter", ("test",), np.arange(10))
            draft.set_result("spectrum", ("rank",), np.arange(3.0))
            draft.add_file("notes.txt", b"solved")
        return current(store)

    def test_results_stay_when_nothing_is_computed(self, store: Store, solved: Version):
        version = published(store, replace(SAMPLE, attrs={"units": "margin"}))
        assert version.number == solved.number + 1
        assert version.open().niter.values.tolist() == list(range(10))
        assert version.open().attrs["iterations"] == 7
        assert version.file("notes.txt") == b"solved"
        assert version.verify(checksums=True) == ()

    @pytest.mark.parametrize("rows", [8, 12])
    def test_results_go_when_there_are_other_rows_even_if_every_chunk_is_right(
        self, store: Store, solved: Version, rows: int
    ):
        version = published(store, replace(SAMPLE, test=tuple(range(rows))))
        assert version.number == solved.number + 1
        assert_no_results(version)

    def test_results_go_when_a_chunk_is_computed_again(self, store: Store, solved: Version):
        assert_no_results(published(store, SAMPLE.with_train({0: 2.5})))
        assert solved.file("notes.txt") == b"solved"

    def test_results_set_before_the_first_write_stay(self, store: Store, solved: Version):
        changed = SAMPLE.with_train({0: 2.5})
        with store.new_version(NAME, changed.layout) as draft:
            draft.set_attrs(iterations=9)
            write_outdated(draft, changed)
        assert current(store).attrs["iterations"] == 9
        assert solved.attrs["iterations"] == 7
        assert "niter" not in current(store).open()

    def test_results_set_to_what_they_were_make_no_new_version(self, store: Store, solved: Version):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_attrs(iterations=7)
        assert current(store).number == solved.number
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_attrs(iterations=8)
        assert current(store).number == solved.number + 1
        assert current(store).open().niter.size == 10

    def test_results_replaced_under_the_same_name_are_the_new_ones(
        self, store: Store, solved: Version
    ):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_result("spectrum", ("rank",), np.arange(5.0))
        assert current(store).open().spectrum.size == 5
        assert solved.open().spectrum.size == 3

    def test_results_that_cannot_be_kept_are_refused(self, store: Store, solved: Version):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            with pytest.raises(StoreError, match="9 values along 'test'"):
                draft.set_result("niter", ("test",), np.arange(9))
            with pytest.raises(StoreError, match="'valid' already"):
                draft.set_result("valid", ("train",), np.arange(20))
            with pytest.raises(StoreError, match="cannot be a object"):
                draft.set_attrs(thing=object())
            for name in ("zarr.json", "../x", "influences", ".hidden", "", "a/b"):
                with pytest.raises(StoreError, match="cannot be the name"):
                    draft.add_file(name, b"")
        assert current(store).number == solved.number


def assert_no_results(version: Version) -> None:
    assert set(version.open().coords) == {"test", "train", "valid"}
    assert "iterations" not in version.attrs
    with pytest.raises(StoreError, match=r"no file 'notes\.txt'; it has none"):
        version.file("notes.txt")
    with pytest.raises(StoreError, match="no coordinate 'spectrum'"):
        version.coordinate("spectrum")
    assert version.verify(checksums=True) == ()
