"""What is not what was written is named, and computed again: the contract's part about damage."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from influence_dag.errors import StoreError
from influence_dag.store.layout import Coordinate
from influence_dag.store.opening import open_store
from influence_dag.store.protocol import Store, Version
from influence_dag.store.soundness import Damage
from influence_dag.store.testing.sample import (
    HARM,
    NAME,
    SAMPLE,
    Backend,
    Edit,
    current,
    emptied,
    published,
    refresh,
    removed,
    truncated,
    with_another_bit,
    write_outdated,
)

CHUNK = "influences/c.1.2"


class DamageContract:
    """No number is read that was not written; what is harmed is found, named and made again."""

    @pytest.fixture
    def version(self, store: Store) -> Version:
        return published(store, SAMPLE)

    @pytest.mark.parametrize("harm", HARM)
    def test_a_damaged_chunk_is_an_error_when_it_is_read_and_names_file_and_cure(
        self, backend: Backend, version: Version, harm: Edit
    ):
        backend.damage(version, CHUNK, harm)
        dataset = version.open()
        np.testing.assert_array_equal(dataset.influences[:4].values, SAMPLE.values[:4])
        what = "is missing" if harm is removed else "is damaged"
        message = f"{NAME}: {re.escape(version.address)}/{CHUNK} {what}.*refresh the artifact"
        for read in (
            dataset.influences.load,
            lambda: version.array("influences")[...],
            lambda: version.read("influences"),
        ):
            with pytest.raises(StoreError, match=message):
                read()

    @pytest.mark.parametrize("harm", HARM)
    def test_a_damaged_chunk_is_found_and_computed_again(
        self, store: Store, backend: Backend, version: Version, harm: Edit
    ):
        backend.damage(version, CHUNK, harm)
        assert version.verify() == (Damage(CHUNK, harm is removed, "influences", (1, 2)),)
        plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
        assert plan.outdated == {"influences": [(1, 2)]}
        assert plan.reasons == {"damaged": 1}
        draft = refresh(store, SAMPLE)
        assert draft.chunks_written == 1
        mended = current(store)
        assert mended.number == 2
        assert mended.verify(checksums=True) == ()
        np.testing.assert_array_equal(mended.open().influences.values, SAMPLE.values)

    def test_rot_that_no_stamp_tells_is_found_by_checksums(
        self, backend: Backend, version: Version
    ):
        backend.rot(version, CHUNK, with_another_bit)
        assert version.verify() == ()
        found = (Damage(CHUNK, False, "influences", (1, 2)),)
        assert version.verify(checksums=True) == found
        with pytest.raises(StoreError, match="is damaged"):
            version.open().influences.load()
        assert version.verify() == found, "it was seen"

    @pytest.mark.parametrize(
        ("file", "read"),
        [
            ("zarr.json", lambda version: version.open()),
            ("zarr.json", lambda version: version.attrs),
            ("influences/zarr.json", lambda version: version.array("influences")),
        ],
        ids=["the dataset", "attributes", "an array"],
    )
    def test_metadata_with_another_bit_are_an_error_when_they_are_read(
        self, store: Store, backend: Backend, version: Version, file: str, read
    ):
        backend.damage(version, file, with_another_bit)
        message = f"{re.escape(version.address)}/{file} is damaged.*refresh the artifact"
        with pytest.raises(StoreError, match=message):
            read(open_store(store.address).version(NAME))

    def test_a_bit_that_rots_in_the_metadata_is_found_by_the_reader_and_then_by_a_refresh(
        self, store: Store, backend: Backend, version: Version
    ):
        backend.rot(version, "zarr.json", with_another_bit)
        assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
        with pytest.raises(StoreError, match="is damaged"):
            store.version(NAME).open()
        assert not store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
        assert published(store, SAMPLE).verify(checksums=True) == ()

    @pytest.mark.parametrize("harm", HARM)
    @pytest.mark.parametrize("file", ["train/c.0", "valid/c.0"])
    def test_a_damaged_coordinate_is_written_again_and_nothing_computed(
        self, store: Store, backend: Backend, version: Version, file: str, harm: Edit
    ):
        backend.damage(version, file, harm)
        with pytest.raises(StoreError, match=f"{NAME}: {re.escape(version.address)}/{file} is"):
            version.open()
        assert version.verify() == (Damage(file, harm is removed),)
        plan = store.plan(NAME, SAMPLE.layout, SAMPLE.expected)
        assert plan.computed == 0
        assert not plan.up_to_date
        draft = refresh(store, SAMPLE)
        assert (draft.chunks_written, current(store).number) == (0, 2)
        assert current(store).open().train.values.tolist() == [f"r{i}" for i in range(20)]

    @pytest.mark.parametrize("harm", [truncated, emptied, removed])
    @pytest.mark.parametrize("file", ["manifest.json", "blocks.npz"])
    def test_without_its_bookkeeping_a_version_is_computed_anew(
        self, store: Store, backend: Backend, version: Version, file: str, harm: Edit
    ):
        backend.damage(version, file, harm)
        assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).computed == 9
        draft = refresh(store, SAMPLE)
        assert (draft.chunks_written, current(store).number) == (9, 2)
        np.testing.assert_array_equal(current(store).open().influences.values, SAMPLE.values)

    @pytest.mark.parametrize("file", ["zarr.json", "influences/zarr.json"])
    @pytest.mark.parametrize("harm", [truncated, removed])
    def test_damaged_metadata_are_written_again(
        self, store: Store, backend: Backend, version: Version, file: str, harm: Edit
    ):
        backend.damage(version, file, harm)
        assert {damage.file for damage in version.verify()} == {file}
        assert not store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date
        draft = refresh(store, SAMPLE)
        assert draft.chunks_written == 0
        np.testing.assert_array_equal(current(store).open().influences.values, SAMPLE.values)

    def test_a_changed_number_in_an_added_file_or_the_metadata_is_noticed(
        self, store: Store, backend: Backend
    ):
        with store.new_version("model", SAMPLE.layout) as draft:
            write_outdated(draft, SAMPLE)
            draft.add_file("model.safetensors", b"weights of the model")
        version = current(store, "model")
        backend.damage(version, "model.safetensors", with_another_bit)
        with pytest.raises(StoreError, match=r"model\.safetensors is damaged"):
            version.file("model.safetensors")
        backend.damage(version, "zarr.json", with_other_units)
        assert {damage.file for damage in version.verify()} == {"model.safetensors", "zarr.json"}

    @pytest.mark.parametrize(
        "edit",
        [
            lambda content: content.replace(b"influence", b"infLuence"),
            lambda content: b"[" * len(content),
        ],
        ids=["another name", "no JSON"],
    )
    def test_metadata_that_rotted_are_not_said_again_in_the_group_s_new_file(
        self, store: Store, backend: Backend, version: Version, edit: Edit
    ):
        backend.rot(version, "influences/zarr.json", edit)
        after = SAMPLE.with_train({3: 50.0})
        with pytest.raises(StoreError, match=r"zarr\.json was damaged before it was published"):
            refresh(open_store(store.address), after)
        mended = published(open_store(store.address), after)
        assert mended.open().influences.attrs == {"long_name": "influence"}
        assert mended.verify(checksums=True) == ()

    def test_labels_that_rotted_do_not_become_right_in_the_versions_after(
        self, store: Store, backend: Backend, version: Version
    ):
        """They are taken over, and keep the checksum of what was written."""
        backend.rot(version, "train/c.0", with_another_bit)
        after = published(store, SAMPLE.with_train({3: -1.0}))
        assert after.verify() == ()
        assert after.verify(checksums=True) == (Damage("train/c.0", False),)
        with pytest.raises(StoreError, match=r"train/c\.0 is damaged"):
            after.open()

    def test_exchanged_chunks_are_noticed_by_every_reader_and_computed_again(
        self, store: Store, backend: Backend, version: Version
    ):
        first, second = "influences/c.0.1", "influences/c.1.0"
        exchange(backend, version, first, second)
        for read in (
            version.open().influences.load,
            lambda: version.read("influences"),
            lambda: version.array("influences")[...],
        ):
            with pytest.raises(StoreError, match=r"c\.(0\.1|1\.0) is damaged"):
                read()
        found = {damage.file for damage in version.verify()}
        deeper = {damage.file for damage in version.verify(checksums=True)}
        assert found == deeper == {first, second}
        draft = refresh(store, SAMPLE)
        assert draft.chunks_written == 2
        assert current(store).verify(checksums=True) == ()
        np.testing.assert_array_equal(current(store).read("influences"), SAMPLE.values)

    @pytest.mark.parametrize("file", ["influences/c.0.0", "train/c.0", "zarr.json", "blocks.npz"])
    def test_a_file_of_an_older_version_is_noticed(
        self, store: Store, backend: Backend, version: Version, file: str
    ):
        older: list[bytes] = []
        backend.damage(version, file, lambda content: older.append(content) or content)
        newer = replace(SAMPLE.with_train({0: 5.0, 19: 7.0}), attrs={"units": "other"})
        labels = Coordinate("train", ("train",), np.array([f"s{i}" for i in range(20)]))
        coordinates = (each for each in newer.layout.coordinates if each.name != "train")
        layout = replace(newer.layout, coordinates=(*coordinates, labels))
        with store.new_version(NAME, layout) as draft:
            write_outdated(draft, newer)
        now = current(store)
        backend.damage(now, file, lambda content: older[0])
        found = [damage.file for damage in now.verify()]
        assert file in found or found[0] == "manifest.json"
        fresh = open_store(store.address).version(NAME)
        with pytest.raises(StoreError, match="is damaged"):
            _ = fresh.keys("influences"), fresh.open().load()

    @pytest.mark.parametrize("bit", range(0, 6000, 97))
    def test_a_bit_of_the_manifest_is_told_and_mended(
        self, store: Store, backend: Backend, version: Version, bit: int
    ):
        def harm(content: bytes) -> bytes:
            harmed = bytearray(content)
            harmed[bit // 8 % len(harmed)] ^= 1 << bit % 8
            return bytes(harmed)

        backend.damage(version, "manifest.json", harm)
        again = open_store(store.address)
        with pytest.raises(StoreError, match=r"manifest\.json is damaged|another influence_dag"):
            again.version(NAME).open()
        found = [damage.file for damage in again.version(NAME).verify()]
        assert found == ["manifest.json"]
        mended = published(again, SAMPLE)
        np.testing.assert_array_equal(mended.read("influences"), SAMPLE.values)

    @pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"format": 4}', b"\xff\xfe"])
    def test_a_manifest_that_is_none_is_told_and_mended(
        self, store: Store, backend: Backend, version: Version, content: bytes
    ):
        backend.damage(version, "manifest.json", lambda _: content)
        again = open_store(store.address)
        with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
            again.version(NAME).open()
        mended = published(again, SAMPLE)
        np.testing.assert_array_equal(mended.read("influences"), SAMPLE.values)

    def test_a_version_of_another_format_is_named_and_computed_anew(
        self, store: Store, backend: Backend, version: Version
    ):
        backend.damage(version, "manifest.json", of_an_earlier_format)
        with pytest.raises(StoreError, match=r"another influence_dag \(format 2, this one's is 4"):
            open_store(store.address).version(NAME).open()
        draft = refresh(open_store(store.address), SAMPLE)
        assert (draft.chunks_written, current(store).number) == (9, 2)


def with_other_units(content: bytes) -> bytes:
    metadata = json.loads(content)
    metadata["attributes"]["units"] = "liss"
    return json.dumps(metadata).encode()


def of_an_earlier_format(content: bytes) -> bytes:
    manifest = json.loads(content)
    del manifest["crc32c"]  # which earlier formats had not
    return json.dumps(manifest | {"format": 2}).encode()


def exchange(backend: Backend, version: Version, first: str, second: str) -> None:
    """Let each of two files hold what the other one does."""
    held: dict[str, bytes] = {}
    for file in (first, second):
        backend.damage(version, file, lambda content, file=file: held.setdefault(file, content))
    backend.damage(version, first, lambda content: held[second])
    backend.damage(version, second, lambda content: held[first])
