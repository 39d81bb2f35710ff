"""A file that is not what was written is an error that names it, and is computed again."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from stored_sample import NAME, Sample, refresh, write_chunk

from influence_dag.errors import StoreError
from influence_dag.files import stamp
from influence_dag.store import ArtifactStore, Coordinate, Damage

SAMPLE = Sample()
CHUNK = "influences/c.1.2"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_checksum(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 128
    path.write_bytes(content)


def delete(path):
    path.unlink()


HARM = [truncate, empty, flip_a_bit, flip_a_bit_of_the_checksum, delete]


@pytest.fixture
def version(store):
    return refresh(store, SAMPLE).version


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_chunk_is_an_error_when_it_is_read_and_names_file_and_cure(version, harm):
    harm(version.path / CHUNK)
    dataset = version.open()
    np.testing.assert_array_equal(dataset.influences[:4].values, SAMPLE.values[:4])
    what = "is missing" if harm is delete else "is damaged"
    message = f"{NAME}: {version.path / CHUNK} {what}.*refresh the artifact"
    for read in (dataset.influences.load, lambda: version.array("influences")[...]):
        with pytest.raises(StoreError, match=message):
            read()


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_chunk_is_found_and_computed_again(store, version, harm):
    harm(version.path / CHUNK)
    assert version.verify() == (Damage(CHUNK, harm is delete, "influences", (1, 2)),)
    plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
    assert plan.outdated == {"influences": [(1, 2)]}
    assert plan.reasons == {"damaged": 1}
    draft = refresh(store, SAMPLE)
    assert draft.chunks_written == 1
    assert draft.version.number == 2
    assert draft.version.verify(checksums=True) == ()
    np.testing.assert_array_equal(draft.version.open().influences.values, SAMPLE.values)


def test_rot_that_leaves_size_and_time_alone_is_found_by_checksums(version):
    path = version.path / CHUNK
    times = path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert version.verify() == ()
    assert version.verify(checksums=True) == (Damage(CHUNK, False, "influences", (1, 2)),)
    with pytest.raises(StoreError, match="is damaged"):
        version.open().influences.load()
    assert version.verify() == (Damage(CHUNK, False, "influences", (1, 2)),), "it was seen"


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("zarr.json", lambda version: version.open()),
        ("zarr.json", lambda version: version.attrs),
        ("influences/zarr.json", lambda version: version.array("influences")),
    ],
)
def test_metadata_with_another_bit_are_an_error_when_they_are_read(store, version, file, read):
    path = version.path / file
    flip_a_bit(path)
    with pytest.raises(StoreError, match=f"{path} is damaged.*refresh the artifact"):
        read(store.version(NAME))


def test_a_bit_that_rots_in_the_metadata_is_found_by_the_reader_and_then_by_a_refresh(
    store, version
):
    path, times = version.path / "zarr.json", (version.path / "zarr.json").stat()
    flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
    with pytest.raises(StoreError, match="is damaged"):
        store.version(NAME).open()
    assert not store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
    assert refresh(store, SAMPLE).version.verify(checksums=True) == ()


def test_a_file_that_was_only_touched_is_sound(store, version):
    later = time.time() + 100
    for path in version.path.rglob("*"):
        os.utime(path, (later, later))
    assert version.verify() == ()
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["train/c.0", "valid/c.0"])
def test_a_damaged_coordinate_is_written_again_and_nothing_computed(store, version, file, harm):
    harm(version.path / file)
    with pytest.raises(StoreError, match=f"{NAME}: {version.path / file} is"):
        version.open()
    assert version.verify() == (Damage(file, harm is delete),)
    plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
    assert plan.computed == 0
    assert not plan.up_to_date
    draft = refresh(store, SAMPLE)
    assert (draft.chunks_written, draft.version.number) == (0, 2)
    assert draft.version.open().train.values.tolist() == [f"r{i}" for i in range(20)]


@pytest.mark.parametrize("harm", [truncate, empty, delete])
@pytest.mark.parametrize("file", ["manifest.json", "blocks.npz"])
def test_without_its_bookkeeping_a_version_is_computed_anew(store, version, file, harm):
    harm(version.path / file)
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).computed == 9
    draft = refresh(store, SAMPLE)
    assert (draft.chunks_written, draft.version.number) == (9, 2)
    np.testing.assert_array_equal(draft.version.open().influences.values, SAMPLE.values)


@pytest.mark.parametrize("file", ["zarr.json", "influences/zarr.json"])
@pytest.mark.parametrize("harm", [truncate, delete])
def test_damaged_metadata_are_written_again(store, version, file, harm):
    harm(version.path / file)
    assert {damage.file for damage in version.verify()} == {file}
    assert not store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
    draft = refresh(store, SAMPLE)
    assert draft.chunks_written == 0
    np.testing.assert_array_equal(draft.version.open().influences.values, SAMPLE.values)


def test_a_changed_number_in_an_added_file_or_the_metadata_is_noticed(store):
    with store.new_version("model", SAMPLE.layout) as draft:
        for index in draft.outdated(SAMPLE.expected)["influences"]:
            region = SAMPLE.layout["influences"].region(index)
            key = {index: SAMPLE.expected["influences"][index].tobytes()}
            draft.write("influences", tuple(s.start for s in region), SAMPLE.values[region], key)
        draft.add_file("model.safetensors", b"weights of the model")
    version = draft.version
    flip_a_bit(version.path / "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors is damaged"):
        version.file("model.safetensors")
    metadata = json.loads((version.path / "zarr.json").read_text())
    metadata["attributes"]["units"] = "liss"
    (version.path / "zarr.json").write_text(json.dumps(metadata))
    assert {damage.file for damage in version.verify()} == {"model.safetensors", "zarr.json"}


def test_a_dataset_whose_version_was_removed_says_so(store, tmp_path):
    held = refresh(store, SAMPLE).version.open()
    for content in range(3):
        refresh(ArtifactStore(store.root, keep_versions=1), SAMPLE.with_train({0: 9.0 + content}))
    with pytest.raises(StoreError, match="version 000001 was removed while it was open"):
        held.influences.load()


def test_labels_that_rotted_do_not_become_right_in_the_versions_after(store, version):
    """They are linked, and keep the checksum of what was written."""
    path = version.path / "train/c.0"
    times = path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = refresh(store, SAMPLE.with_train({3: -1.0})).version
    assert after.verify() == ()
    assert after.verify(checksums=True) == (Damage("train/c.0", False),)
    with pytest.raises(StoreError, match=r"train/c\.0 is damaged"):
        after.open()


def test_a_version_of_another_format_is_named_and_computed_anew(store, version):
    manifest = json.loads((version.path / "manifest.json").read_text())
    del manifest["crc32c"]  # which earlier formats had not
    (version.path / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(StoreError, match=r"another influence_dag \(format 2, this one's is 4\)"):
        ArtifactStore(store.root).version(NAME).open()
    draft = refresh(ArtifactStore(store.root), SAMPLE)
    assert (draft.chunks_written, draft.version.number) == (9, 2)


def test_on_a_coarse_clock_a_file_of_the_same_size_is_not_taken_for_the_one_before(
    store, monkeypatch
):
    """Some file systems tell times of modification in seconds."""

    def coarse(path):
        seen = stamp(path)
        return seen and (seen[0], 0)

    monkeypatch.setattr("influence_dag.store.folders.stamp", coarse)
    refresh(store, SAMPLE)
    after = refresh(store, SAMPLE.with_train({3: -1.0})).version
    sizes = {(after.path.with_name(n) / "blocks.npz").stat().st_size for n in ("000001", "000002")}
    assert len(sizes) == 1
    assert after.verify(checksums=True) == ()
    after.open().load()


# A chunk is the chunk it says


def exchange(first, second):
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.unlink()  # another file: older versions may have a link to this one
        path.write_bytes(content)


def test_exchanged_chunks_are_noticed_by_every_reader_and_computed_again(store, version):
    first, second = "influences/c.0.1", "influences/c.1.0"
    exchange(version.path / first, version.path / second)
    for read in (
        version.open().influences.load,
        lambda: version.read("influences"),
        lambda: version.array("influences")[...],
    ):
        with pytest.raises(StoreError, match=r"c\.(0\.1|1\.0) is damaged"):
            read()
    found = {damage.file for damage in version.verify()}
    assert found == {damage.file for damage in version.verify(checksums=True)} == {first, second}
    draft = refresh(store, SAMPLE)
    assert draft.chunks_written == 2
    assert draft.version.verify(checksums=True) == ()
    np.testing.assert_array_equal(draft.version.read("influences"), SAMPLE.values)


@pytest.mark.parametrize("file", ["influences/c.0.0", "train/c.0", "zarr.json", "blocks.npz"])
def test_a_file_of_an_older_version_is_noticed(store, version, file):
    newer = replace(SAMPLE.with_train({0: 5.0, 19: 7.0}), attrs={"units": "other"})
    changed = newer.layout
    labels = Coordinate("train", ("train",), np.array([f"s{i}" for i in range(20)]))
    others = tuple(labels if item.name == "train" else item for item in changed.coordinates)
    layout = replace(changed, coordinates=others)
    with store.new_version(NAME, layout) as draft:
        for index in draft.outdated(newer.expected)["influences"]:
            write_chunk(draft, newer, index)
    now = draft.version
    (now.path / file).unlink()
    (now.path / file).write_bytes((version.path / file).read_bytes())
    assert (
        file in {damage.file for damage in now.verify()} or now.verify()[0].file == "manifest.json"
    )
    fresh = ArtifactStore(store.root).version(NAME)
    with pytest.raises(StoreError, match="is damaged"):
        (fresh.keys("influences"), fresh.open().load())


def test_an_exchange_is_noticed_in_the_versions_that_link_the_files_too(store, version):
    now = refresh(store, SAMPLE.with_train({19: 7.0})).version
    first, second = (now.path / f"influences/{name}" for name in ("c.0.0", "c.1.0"))
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)  # into the files that both versions share
    for each in (version, now):
        found = {damage.file for damage in each.verify(checksums=True)}
        assert found == {"influences/c.0.0", "influences/c.1.0"}
    sample = SAMPLE.with_train({19: 8.0})
    again = refresh(store, sample).version
    np.testing.assert_array_equal(again.read("influences"), sample.values)


@pytest.mark.parametrize("bit", range(0, 6000, 97))
def test_a_bit_of_the_manifest_is_told_and_mended(store, version, bit):
    path = version.path / "manifest.json"
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)
    again = ArtifactStore(store.root)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged|another influence_dag"):
        again.version(NAME).open()
    assert [damage.file for damage in again.version(NAME).verify()] == ["manifest.json"]
    draft = refresh(again, SAMPLE)
    np.testing.assert_array_equal(draft.version.read("influences"), SAMPLE.values)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"format": 4}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_told_and_mended(store, version, content):
    (version.path / "manifest.json").write_bytes(content)
    again = ArtifactStore(store.root)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        again.version(NAME).open()
    np.testing.assert_array_equal(refresh(again, SAMPLE).version.read("influences"), SAMPLE.values)
