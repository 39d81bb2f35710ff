"""What is written is what is read: the contract's part about chunks, labels and their encoding."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from influence_dag.errors import StoreError
from influence_dag.store.layout import Coordinate, Layout
from influence_dag.store.protocol import Store
from influence_dag.store.testing.sample import (
    ALL_CHUNKS,
    NAME,
    SAMPLE,
    Sample,
    current,
    published,
    refresh,
    write_chunk,
)


class WritingContract:
    """Whole chunks under their keys, as Zarr has them."""

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "uint8", "bool"])
    def test_what_is_read_is_what_was_written(self, store: Store, dtype: str):
        sample = replace(SAMPLE, dtype=dtype)
        version = published(store, sample)
        np.testing.assert_array_equal(version.array("influences")[...], sample.values)
        np.testing.assert_array_equal(version.open().influences.values, sample.values)
        some = version.read("influences", slice(3, 9), slice(7, 18))
        np.testing.assert_array_equal(some, sample.values[3:9, 7:18])
        assert version.array("influences").dtype == np.dtype(dtype)

    def test_a_large_array_is_cut_in_its_chunks(self, store: Store):
        sample = Sample(tuple(range(300)), tuple(range(500)), chunks=(64, 128), dtype="float64")
        draft = refresh(store, sample)
        version = current(store)
        assert draft.chunks_written == 20
        assert version.array("influences").chunks == (64, 128)
        assert draft.bytes_written < sample.values.nbytes, "compressed"
        np.testing.assert_array_equal(version.read("influences"), sample.values)
        few = version.open().influences[70:75, 7].values
        np.testing.assert_array_equal(few, sample.values[70:75, 7])

    def test_the_dataset_has_labels_names_and_attributes(self, store: Store):
        dataset = published(store, SAMPLE).open()
        assert list(dataset.data_vars) == ["influences"]
        assert set(dataset.coords) == {"test", "train", "valid"}
        assert dataset.influences.dims == ("test", "train")
        assert dataset.influences.attrs == {"long_name": "influence"}
        assert dataset.attrs["units"] == "loss"
        assert dataset.attrs["written_by"] == "a test"
        assert float(dataset.influences.sel(test="t3", train="r7")) == 3007
        assert dataset.valid.dtype == bool

    def test_zarr_and_xarray_open_a_version(self, store: Store):
        version = published(store, SAMPLE)
        group = zarr.open_group(version.zarr_store(), mode="r")
        influences = group["influences"]
        assert isinstance(influences, zarr.Array)
        np.testing.assert_array_equal(influences[...], SAMPLE.values)
        assert set(group.array_keys()) == {"influences", "test", "train", "valid"}
        dataset = xr.open_zarr(version.zarr_store(), chunks=None)
        np.testing.assert_array_equal(dataset.influences.values, SAMPLE.values)

    def test_a_version_cannot_be_changed_through_zarr(self, store: Store):
        version = published(store, SAMPLE)
        array = version.array("influences")
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 5
        assert version.verify(checksums=True) == ()

    def test_uncomputed_floats_are_nan_and_chunks_have_codec_and_checksum(self, store: Store):
        metadata: Any = published(store, SAMPLE).array("influences").metadata
        assert np.isnan(metadata.fill_value)
        codecs = [codec.to_dict() for codec in metadata.codecs]
        assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
        settings = codecs[1]["configuration"]
        wanted = ("lz4", 5, "bitshuffle")
        assert (settings["cname"], settings["clevel"], settings["shuffle"]) == wanted
        assert metadata.dimension_names == ("test", "train")

    def test_chunks_that_hold_only_nan_are_stored_and_read(self, store: Store):
        draft = refresh(store, replace(SAMPLE, test=(np.nan,) * 10))
        assert draft.chunks_written == 9
        version = current(store)
        assert np.isnan(version.open().influences.values).all()
        assert version.verify(checksums=True) == ()

    @pytest.mark.parametrize("error", [1e-2, 2.4e-4, 1e-6])
    def test_rounding_keeps_the_stated_relative_error_and_what_is_not_finite(
        self, store: Store, error: float
    ):
        rng = np.random.default_rng(0)
        values = rng.normal(size=10) * 10.0 ** rng.integers(-30, 30, 10)
        values[:3] = np.nan, np.inf, -np.inf
        sample = Sample(test=(0.0,), train=tuple(values), max_relative_error=error)
        version = published(store, sample)
        stored = np.asarray(version.array("influences")[0])
        np.testing.assert_array_equal(stored[:3], np.float32(values[:3]))
        wanted = np.float32(values[3:])
        assert (np.abs(stored[3:] - wanted) <= error * np.abs(wanted)).all()
        assert version.array("influences").attrs["max_relative_error"] == error
        exact = replace(sample, max_relative_error=0.0)
        plan = store.plan(NAME, exact.layout, exact.expected)
        assert plan.computed == 2, "another encoding"

    def test_a_region_with_steps_is_refused(self, store: Store):
        version = published(store, SAMPLE)
        for step in (-1, 2):
            with pytest.raises(StoreError, match=r"'influences': .* has steps"):
                version.read("influences", slice(None, None, step))

    def test_text_survives(self, store: Store):
        words = np.array(["", "héllo", "長い文字列" * 40])
        layout = Layout((), (Coordinate("train", ("train",), words),))
        with store.new_version("dataset", layout):
            pass
        version = current(store, "dataset")
        assert version.open().train.values.tolist() == words.tolist()
        assert version.coordinate("train").tolist() == words.tolist()
        assert version.coordinates == ["train"]

    @pytest.mark.parametrize(
        ("start", "shape", "indices"),
        [
            ((0, 4), (4, 8), [(0, 0)]),
            ((0, 0), (4, 7), [(0, 0)]),
            ((0, 0), (3, 8), [(0, 0)]),
            ((8, 16), (4, 8), [(2, 2)]),
            ((12, 0), (4, 8), [(3, 0)]),
        ],
        ids=["start", "columns", "rows", "beyond the edge", "outside"],
    )
    def test_unaligned_writes_are_refused(self, store: Store, start, shape, indices):
        keys = dict.fromkeys(indices, b"k" * 16)
        with (
            pytest.raises(StoreError, match="not whole chunks"),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            draft.write("influences", start, np.zeros(shape, "float32"), keys)

    @pytest.mark.parametrize(
        "keys",
        [{}, {(0, 0): b"k" * 16, (0, 1): b"k" * 16}, {(0, 0): b"short"}, {(0, 0): bytes(16)}],
        ids=["none", "one too many", "short", "zeros"],
    )
    def test_each_chunk_needs_its_key(self, store: Store, keys):
        with (
            pytest.raises(StoreError, match="keys of 16 bytes"),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            draft.write("influences", (0, 0), np.zeros((4, 8), "float32"), keys)

    def test_another_dtype_or_variable_is_refused(self, store: Store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            with pytest.raises(StoreError, match="takes float32 of 2 dimensions, got float64"):
                draft.write("influences", (0, 0), np.zeros((4, 8)), {(0, 0): b"k" * 16})
            with pytest.raises(StoreError, match="no variable 'scores'"):
                draft.write("scores", (0, 0), np.zeros((4, 8)), {(0, 0): b"k" * 16})
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)

    def test_what_a_version_lacks_is_named_with_what_it_has(self, store: Store):
        version = published(store, SAMPLE)
        for read in (version.array, version.read, version.keys):
            with pytest.raises(StoreError, match="no variable 'scores'; it has influences"):
                read("scores")
        with pytest.raises(StoreError, match=r"no coordinate 'valued'; it has .*valid"):
            version.coordinate("valued")

    def test_a_region_of_several_chunks_is_one_write(self, store: Store):
        keys = {index: SAMPLE.expected["influences"][index].tobytes() for index in ALL_CHUNKS}
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.write("influences", (0, 0), SAMPLE.values, keys)
        at_once = current(store).open().load()
        assert at_once.equals(published(store, SAMPLE).open())
        assert len(store.versions(NAME)) == 1

    def test_after_the_block_writes_are_refused(self, store: Store):
        draft = refresh(store, SAMPLE)
        with pytest.raises(StoreError, match="inside its `with` block"):
            write_chunk(draft, SAMPLE, (0, 0))
