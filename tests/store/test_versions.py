import errno
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from stored_sample import NAME, Sample, chunk_files, refresh, write_chunk

from influence_dag.errors import StoreError
from influence_dag.store import ArtifactStore, Coordinate, Layout, Variable
from influence_dag.store.results import Results

SAMPLE = Sample()
ALL_CHUNKS = [(i, j) for i in range(3) for j in range(3)]


def new_files(before, after):
    return {name for name, (inode, _) in after.items() if before.get(name, (0,))[0] != inode}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "uint8", "bool"])
def test_what_is_read_is_what_was_written(store, dtype):
    sample = replace(SAMPLE, dtype=dtype)
    version = refresh(store, sample).version
    np.testing.assert_array_equal(version.array("influences")[...], sample.values)
    np.testing.assert_array_equal(version.open().influences.values, sample.values)
    assert version.array("influences").dtype == np.dtype(dtype)


def test_plain_xarray_reads_the_current_version_with_names_and_without_a_warning(store):
    refresh(store, SAMPLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(store.root / NAME / "current")
    np.testing.assert_array_equal(dataset.influences.values, SAMPLE.values)
    assert list(dataset.data_vars) == ["influences"]
    assert set(dataset.coords) == {"test", "train", "valid"}
    assert dataset.influences.dims == ("test", "train")
    assert dataset.influences.attrs == {"long_name": "influence"}
    assert dataset.attrs["units"] == "loss"
    assert dataset.attrs["written_by"] == "a test"
    assert float(dataset.influences.sel(test="t3", train="r7")) == 3007
    assert dataset.valid.dtype == bool


def test_uncomputed_floats_are_nan_and_chunks_have_codec_and_checksum(store):
    array = refresh(store, SAMPLE).version.array("influences")
    assert np.isnan(array.metadata.fill_value)
    names = [codec.to_dict()["name"] for codec in array.metadata.codecs]
    assert names == ["bytes", "blosc", "crc32c"]
    settings = array.metadata.codecs[1].to_dict()["configuration"]
    assert (settings["cname"], settings["clevel"], settings["shuffle"]) == ("lz4", 5, "bitshuffle")
    assert array.metadata.dimension_names == ("test", "train")


def test_chunks_that_hold_only_nan_are_stored_and_read(store):
    sample = replace(SAMPLE, test=(np.nan,) * 10)
    version = refresh(store, sample).version
    assert len(chunk_files(store)) == 9
    assert np.isnan(version.open().influences.values).all()
    assert version.verify(checksums=True) == ()


def test_everything_is_planned_before_the_first_version(store):
    plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
    assert plan.outdated == {"influences": ALL_CHUNKS}
    assert plan.reasons == {"not computed": 9}
    assert (plan.reused, plan.computed, plan.up_to_date) == (0, 9, False)
    assert store.current(NAME) is None
    assert not store.root.exists(), "planning writes nothing"


def test_nothing_changed_means_no_new_version(store):
    first = refresh(store, SAMPLE).version
    plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
    assert plan.up_to_date
    assert plan.reused == 9
    draft = refresh(store, SAMPLE)
    assert draft.chunks_written == 0
    assert [version.number for version in store.versions(NAME)] == [1]
    assert draft.version.path == first.path
    assert {path.name for path in first.path.parent.iterdir()} == {"000001"}


def test_one_changed_row_rewrites_its_own_chunks_and_links_the_others(store):
    refresh(store, SAMPLE)
    before = chunk_files(store)
    changed = SAMPLE.with_train({9: -5.0})
    plan = store.plan(NAME, changed.layout, changed.expected)
    assert plan.outdated == {"influences": [(0, 1), (1, 1), (2, 1)]}
    assert plan.reasons == {"inputs changed": 3}
    draft = refresh(store, changed)
    assert draft.chunks_written == 3
    after = chunk_files(store)
    assert new_files(before, after) == {"0.1", "1.1", "2.1"}
    assert draft.bytes_written == sum(len(after[f"{i}.1"][1]) for i in range(3))
    np.testing.assert_array_equal(draft.version.array("influences")[...], changed.values)
    assert chunk_files(store, 1) == before, "the older version's files are untouched"


@pytest.mark.parametrize(
    ("sample", "outdated"),
    [
        (replace(SAMPLE, train=tuple(range(24))), [(0, 2), (1, 2), (2, 2)]),
        (replace(SAMPLE, train=tuple(range(27))), [(i, j) for i in range(3) for j in (2, 3)]),
        (replace(SAMPLE, train=tuple(range(16))), []),
        (replace(SAMPLE, train=tuple(range(15))), [(0, 1), (1, 1), (2, 1)]),
        (replace(SAMPLE, test=tuple(range(12))), [(2, 0), (2, 1), (2, 2)]),
        (replace(SAMPLE, test=tuple(range(3))), [(0, 0), (0, 1), (0, 2)]),
        (replace(SAMPLE, test=()), []),
        (replace(SAMPLE, chunks=(4, 10)), [(i, j) for i in range(3) for j in range(2)]),
        (replace(SAMPLE, dtype="float64"), ALL_CHUNKS),
        (replace(SAMPLE, attrs={"units": "margin"}), []),
    ],
    ids=[
        "columns fill the last chunk",
        "columns in a new chunk",
        "fewer whole chunks",
        "fewer columns in a chunk",
        "rows appended",
        "one chunk of rows left",
        "no row left",
        "chunk size",
        "dtype",
        "attributes",
    ],
)
def test_a_changed_shape_computes_only_what_it_touches(store, sample, outdated):
    refresh(store, SAMPLE)
    before = chunk_files(store)
    plan = store.plan(NAME, sample.layout, sample.expected)
    assert plan.outdated == {"influences": outdated}
    assert plan.layout_changed
    draft = refresh(store, sample)
    assert draft.version.number == 2
    assert draft.chunks_written == len(outdated)
    assert new_files(before, chunk_files(store)) == {f"{i}.{j}" for i, j in outdated}
    np.testing.assert_array_equal(draft.version.open().influences.values, sample.values)
    assert draft.version.verify(checksums=True) == ()
    np.testing.assert_array_equal(store.version(NAME, 1).open().influences.values, SAMPLE.values)


def test_an_edge_chunk_is_not_reused_for_other_rows_even_under_its_old_key(store):
    refresh(store, SAMPLE)
    longer = replace(SAMPLE, train=tuple(range(22)))
    keys = {"influences": store.version(NAME).keys("influences")}
    plan = store.plan(NAME, longer.layout, keys)
    assert plan.outdated == {"influences": [(0, 2), (1, 2), (2, 2)]}


def test_versions_are_written_where_hard_links_are_impossible(store, monkeypatch):
    link = os.link

    def version_of(path):
        return str(path).partition("/versions/")[2].partition("/")[0]

    def within_a_version(source, target):
        if version_of(source) != version_of(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", within_a_version)
    refresh(store, SAMPLE)
    before = chunk_files(store)
    changed = SAMPLE.with_train({0: 77.0})
    draft = refresh(store, changed)
    assert draft.chunks_written == 3
    np.testing.assert_array_equal(draft.version.open().influences.values, changed.values)
    assert chunk_files(store, 1) == before
    assert store.plan(NAME, changed.layout, changed.expected).up_to_date


def test_everything_new_is_on_the_disk_before_it_has_its_name(store, fsynced, monkeypatch):
    refresh(store, SAMPLE)
    fsynced.clear()
    rename = Path.rename
    published = {path.stat().st_ino for path in (store.root / NAME).rglob("*") if path.is_file()}

    def renamed(path, target):
        fsynced.append(f"{path} renamed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    draft = refresh(store, SAMPLE.with_train({9: -5.0}))
    folder = draft.contents.path
    durable = fsynced[: fsynced.index(f"{folder} renamed")]
    new = {path for path in draft.version.path.rglob("*") if path.stat().st_ino not in published}
    names = {path.relative_to(draft.version.path) for path in new}
    assert set(map(Path, durable)) == {
        draft.contents.path,
        *(draft.contents.path / name for name in names),
    }
    chunks = {f"influences/c.{j}.1" for j in range(3)}
    written = {str(name) for name in names if (draft.version.path / name).is_file()}
    assert written == {"blocks.npz", "manifest.json", "zarr.json", *chunks}
    after = fsynced[len(durable) + 1 :]
    assert after == [str(folder.parent), str(folder.parent.parent)]


def test_the_data_version_follows_keys_and_layout_and_nothing_else(tmp_path):
    samples = [SAMPLE, SAMPLE, SAMPLE.with_train({0: 9.0}), replace(SAMPLE, attrs={"units": "x"})]
    versions = [
        refresh(ArtifactStore(tmp_path / str(i)), sample).version
        for i, sample in enumerate(samples)
    ]
    first, same, other_row, other_attrs = [version.data_version for version in versions]
    assert first == same == versions[0].open().attrs["data_version"]
    assert len({first, other_row, other_attrs}) == 3


def test_old_versions_are_kept_by_policy_and_gc_removes_more(tmp_path):
    store = ArtifactStore(tmp_path, keep_versions=3)
    for content in range(5):
        refresh(store, SAMPLE.with_train({0: 100.0 + content}))
    assert [version.number for version in store.versions(NAME)] == [3, 4, 5]
    assert store.version(NAME).number == 5
    assert float(store.version(NAME, 4).open().influences[0, 0]) == 103
    with pytest.raises(StoreError, match=r"no version 1; kept are \[3, 4, 5\]"):
        store.version(NAME, 1)
    removed = ArtifactStore(tmp_path, keep_versions=1).gc()
    assert removed == [f"{NAME}/versions/00000{number}" for number in (3, 4)]
    assert [version.number for version in store.versions(NAME)] == [5]
    with pytest.raises(StoreError, match="at least the current one"):
        ArtifactStore(tmp_path, keep_versions=0)


def test_a_current_link_that_was_set_back_is_never_removed(tmp_path):
    store = ArtifactStore(tmp_path, keep_versions=2)
    refresh(store, SAMPLE)
    refresh(store, SAMPLE.with_train({0: 1.0}))
    link = tmp_path / NAME / "current"
    link.unlink()
    link.symlink_to("versions/000001")
    assert store.version(NAME).number == 1
    store.keep_versions = 1
    assert store.gc(NAME) == [f"{NAME}/versions/000002"]
    assert store.version(NAME).number == 1
    assert refresh(store, SAMPLE.with_train({0: 2.0})).version.number == 2


def test_artifacts_are_listed_and_a_missing_one_says_what_there_is(store):
    assert store.names() == []
    refresh(store, SAMPLE)
    refresh(store, SAMPLE, "dataset")
    assert store.names() == ["dataset", NAME]
    with pytest.raises(StoreError, match=r"no 'cg/influences' yet; did you mean .*dataset,"):
        store.version("cg/influences")
    for name in ("../elsewhere", "/tmp/x", "a//b", "x/versions", ""):
        with pytest.raises(StoreError, match="cannot name an artifact"):
            store.current(name)


def test_a_dataset_held_open_keeps_reading_its_version(store):
    refresh(store, SAMPLE)
    held = store.version(NAME).open()
    refresh(store, SAMPLE.with_train(dict.fromkeys(range(20), 1e3)))
    np.testing.assert_array_equal(held.influences.values, SAMPLE.values)
    assert store.version(NAME).open().influences.values[0, 0] == 1e3


def test_an_artifact_can_be_moved_and_copied(store, tmp_path):
    refresh(store, SAMPLE)
    shutil.copytree(store.root, tmp_path / "copy", symlinks=True, copy_function=shutil.copy)
    moved = ArtifactStore(tmp_path / "copy")
    assert moved.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
    np.testing.assert_array_equal(moved.version(NAME).open().influences.values, SAMPLE.values)


def test_several_variables_scalars_and_planned_coordinates(store):
    variables = (
        Variable("loss", ("train",), (5,), "float64", (4,)),
        Variable("total", (), (), "float64", ()),
        Variable("niter", ("train",), (5,), "int64", (4,), coordinate=True),
    )
    keys = {v.name: np.full((*v.grid, 16), 7, np.uint8) for v in variables}
    with store.new_version("summary", Layout(variables)) as draft:
        assert draft.outdated(keys) == {"loss": [(0,), (1,)], "total": [()], "niter": [(0,), (1,)]}
        both = {(0,): bytes([7] * 16), (1,): bytes([7] * 16)}
        draft.write("loss", (0,), np.arange(5.0), both)
        draft.write("niter", (0,), np.arange(5), both)
        draft.write("total", (), np.array(10.0), {(): bytes([7] * 16)})
        np.testing.assert_array_equal(draft.read("loss", slice(1, 3)), [1, 2])
    dataset = draft.version.open()
    assert set(dataset.data_vars) == {"loss", "total"}
    assert dataset.niter.values.tolist() == [0, 1, 2, 3, 4]
    assert float(dataset.total) == 10
    assert store.plan("summary", Layout(variables), keys).up_to_date


@pytest.mark.parametrize("error", [1e-2, 2.4e-4, 1e-6])
def test_rounding_keeps_the_stated_relative_error_and_what_is_not_finite(store, error):
    rng = np.random.default_rng(0)
    values = rng.normal(size=10) * 10.0 ** rng.integers(-30, 30, 10)
    values[:3] = np.nan, np.inf, -np.inf
    sample = Sample(test=(0.0,), train=tuple(values), max_relative_error=error)
    version = refresh(store, sample).version
    stored = version.array("influences")[0]
    np.testing.assert_array_equal(stored[:3], np.float32(values[:3]))
    wanted = np.float32(values[3:])
    assert (np.abs(stored[3:] - wanted) <= error * np.abs(wanted)).all()
    assert version.array("influences").attrs["max_relative_error"] == error
    exact = replace(sample, max_relative_error=0.0)
    assert store.plan(NAME, exact.layout, exact.expected).computed == 2, "another encoding"


class TestWritingChunks:
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
    def test_unaligned_ones_are_refused(self, store, start, shape, indices):
        keys = dict.fromkeys(indices, b"k" * 16)
        with (
            pytest.raises(StoreError, match="not whole chunks"),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            draft.write("influences", start, np.zeros(shape, "float32"), keys)

    @pytest.mark.parametrize(
        "keys",
        [{}, {(0, 0): b"k" * 16, (0, 1): b"k" * 16}, {(0, 0): b"short"}, {(0, 0): bytes(16)}],
    )
    def test_each_needs_its_key(self, store, keys):
        with (
            pytest.raises(StoreError, match="keys of 16 bytes"),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            draft.write("influences", (0, 0), np.zeros((4, 8), "float32"), keys)

    def test_another_dtype_or_variable_is_refused(self, store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            with pytest.raises(StoreError, match="takes float32 of 2 dimensions, got float64"):
                draft.write("influences", (0, 0), np.zeros((4, 8)), {(0, 0): b"k" * 16})
            with pytest.raises(StoreError, match="no variable 'scores'"):
                draft.write("scores", (0, 0), np.zeros((4, 8)), {(0, 0): b"k" * 16})
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)

    def test_a_region_of_several_chunks_is_one_write(self, store):
        keys = {index: SAMPLE.expected["influences"][index].tobytes() for index in ALL_CHUNKS}
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.write("influences", (0, 0), SAMPLE.values, keys)
        assert draft.version.open().influences.equals(
            refresh(store, SAMPLE).version.open().influences
        )
        assert len(store.versions(NAME)) == 1

    def test_all_are_needed_before_anything_is_published(self, store):
        with (
            pytest.raises(
                StoreError, match=r"8 of 9 chunks of 'influences'.*nothing was published"
            ),
            store.new_version(NAME, SAMPLE.layout) as draft,
        ):
            write_chunk(draft, SAMPLE, (0, 0))
        assert store.current(NAME) is None

    def test_planned_ones_are_needed_under_their_planned_keys(self, store):
        refresh(store, SAMPLE)
        changed = SAMPLE.with_train({0: 1.5})
        with (
            pytest.raises(StoreError, match="3 of 9 chunks"),
            store.new_version(NAME, changed.layout) as draft,
        ):
            draft.outdated(changed.expected)
        assert store.version(NAME).number == 1

    def test_after_the_block_they_are_refused(self, store):
        draft = refresh(store, SAMPLE)
        with pytest.raises(StoreError, match="inside its `with` block"):
            write_chunk(draft, SAMPLE, (0, 0))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "expected keys of"),
        ({"influences": np.ones((3, 2, 16), np.uint8)}, "grid of chunks needs"),
        ({"influences": np.ones((3, 3, 16), np.int64)}, "int64"),
        ({"influences": np.zeros((3, 3, 16), np.uint8)}, "zeros"),
    ],
)
def test_a_plan_needs_one_key_a_chunk(store, expected, message):
    with pytest.raises(StoreError, match=message):
        store.plan(NAME, SAMPLE.layout, expected)


class TestResults:
    def test_are_coordinates_attributes_and_files_of_the_version(self, store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)
            draft.set_attrs(condition=np.float32(2.5), spectrum=np.arange(2))
            draft.set_result("niter", ("test",), np.arange(10), {"long_name": "iterations"})
            draft.add_file("model.safetensors", b"\x00weights")
        dataset = draft.version.open()
        assert dataset.attrs["condition"] == 2.5
        assert dataset.attrs["spectrum"] == [0, 1]
        assert dataset.coords["niter"].values.tolist() == list(range(10))
        assert dataset.niter.attrs == {"long_name": "iterations"}
        assert draft.version.file("model.safetensors") == b"\x00weights"
        with pytest.raises(StoreError, match=r"no file 'x'; it has model\.safetensors"):
            draft.version.file("x")

    @pytest.fixture
    def solved(self, store):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            for index in ALL_CHUNKS:
                write_chunk(draft, SAMPLE, index)
            draft.set_attrs(iterations=7)
            draft.set_result("niter", ("test",), np.arange(10))
            draft.set_result("spectrum", ("rank",), np.arange(3.0))
            draft.add_file("notes.txt", b"solved")
        return draft.version

    def test_stay_when_nothing_is_computed(self, store, solved):
        version = refresh(store, replace(SAMPLE, attrs={"units": "margin"})).version
        assert version.number == 2
        assert version.open().niter.values.tolist() == list(range(10))
        assert version.open().attrs["iterations"] == 7
        assert version.file("notes.txt") == b"solved"
        assert version.verify(checksums=True) == ()

    @pytest.mark.parametrize("rows", [8, 12])
    def test_go_when_there_are_other_rows_even_if_every_chunk_is_right(self, store, solved, rows):
        version = refresh(store, replace(SAMPLE, test=tuple(range(rows)))).version
        assert set(version.open().coords) == {"test", "train", "valid"}
        assert "iterations" not in version.attrs
        assert version.results == Results()

    def test_go_when_a_chunk_is_computed_again(self, store, solved):
        version = refresh(store, SAMPLE.with_train({0: 2.5})).version
        assert set(version.open().coords) == {"test", "train", "valid"}
        assert "iterations" not in version.attrs
        with pytest.raises(StoreError, match="no file"):
            version.file("notes.txt")
        assert not (version.path / "spectrum").exists()

    def test_set_before_the_first_write_stay(self, store, solved):
        changed = SAMPLE.with_train({0: 2.5})
        with store.new_version(NAME, changed.layout) as draft:
            draft.set_attrs(iterations=9)
            for index in draft.outdated(changed.expected)["influences"]:
                write_chunk(draft, changed, index)
        assert draft.version.attrs["iterations"] == 9
        assert "niter" not in draft.version.open()

    def test_set_to_what_they_were_make_no_new_version(self, store, solved):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_attrs(iterations=7)
        assert draft.version.number == 1
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_attrs(iterations=8)
        assert draft.version.number == 2
        assert draft.version.open().niter.size == 10

    def test_replaced_under_the_same_name_are_the_new_ones(self, store, solved):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            draft.set_result("spectrum", ("rank",), np.arange(5.0))
        assert draft.version.open().spectrum.size == 5
        assert solved.open().spectrum.size == 3

    def test_that_cannot_be_kept_are_refused(self, store, solved):
        with store.new_version(NAME, SAMPLE.layout) as draft:
            with pytest.raises(StoreError, match="9 values along 'test'"):
                draft.set_result("niter", ("test",), np.arange(9))
            with pytest.raises(StoreError, match="'valid' already"):
                draft.set_result("valid", ("train",), np.arange(20))
            with pytest.raises(StoreError, match="cannot be a object"):
                draft.set_attrs(thing=object())
            for name in ("zarr.json", "../x", "influences", ".hidden"):
                with pytest.raises(StoreError, match="cannot be the name"):
                    draft.add_file(name, b"")
        assert draft.version.number == solved.number


def test_zarr_itself_reads_a_version(store):
    refresh(store, SAMPLE)
    group = zarr.open_group(store.root / NAME / "current", mode="r")
    np.testing.assert_array_equal(group["influences"][...], SAMPLE.values)
    assert set(group.array_keys()) == {"influences", "test", "train", "valid"}


def test_text_survives(store):
    words = np.array(["", "héllo", "長い文字列" * 40])
    layout = Layout((), (Coordinate("train", ("train",), words),))
    with store.new_version("dataset", layout):
        pass
    assert store.version("dataset").open().train.values.tolist() == words.tolist()
