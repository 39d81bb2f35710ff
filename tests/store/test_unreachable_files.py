"""What keeps a reader from a file is no word about the file: nothing is computed again for it."""

import errno
import os
from pathlib import Path

import pytest
from stored_sample import NAME, Sample, refresh

from influence_dag.errors import StoreError, UnreachableError
from influence_dag.store import ArtifactStore

SAMPLE = Sample()
ASKED = {
    "version": lambda store: store.version(NAME).data_version,
    "plan": lambda store: store.plan(NAME, SAMPLE.layout, SAMPLE.expected),
    "verify": lambda store: store.version(NAME).verify(checksums=True),
    "refresh": lambda store: refresh(store, SAMPLE),
}


@pytest.fixture
def store(tmp_path):
    refresh(ArtifactStore(tmp_path), SAMPLE)
    return ArtifactStore(tmp_path)


def refused(number: int, name: str, real):
    """A call of the system that refuses paths which end so."""

    def call(path, *arguments, **named):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **named)

    return call


@pytest.mark.parametrize("asked", ["plan", "verify", "refresh"])
@pytest.mark.parametrize("call", ["open", "stat"])
@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EACCES, "ask its owner"),
        (errno.EMFILE, "raise the limit"),
        (errno.ESTALE, "mount it again"),
        (errno.ENOTCONN, "mount it again"),
    ],
)
def test_a_version_that_cannot_be_read_now_is_not_damaged(
    store, monkeypatch, asked, call, number, cure
):
    file = {"open": "manifest.json", "stat": "c.0.0"}[call]
    with monkeypatch.context() as patched:
        patched.setattr(f"os.{call}", refused(number, file, getattr(os, call)))
        with pytest.raises(UnreachableError, match=rf"{file} cannot be read: .*; .*{cure}"):
            ASKED[asked](store)
    assert store.version(NAME).verify() == ()
    assert store.plan(NAME, SAMPLE.layout, SAMPLE.expected).up_to_date


@pytest.mark.parametrize("asked", ASKED)
def test_a_folder_that_cannot_be_looked_into_is_told(store, monkeypatch, asked):
    monkeypatch.setattr(Path, "is_dir", refused(errno.EACCES, "000001", Path.is_dir))
    with pytest.raises(StoreError, match="000001 cannot be read: Permission denied; ask its owner"):
        ASKED[asked](store)


def test_a_link_that_leads_to_itself_is_a_file_that_is_missing(store):
    chunk = store.version(NAME).path / "influences/c.0.0"
    chunk.unlink()
    chunk.symlink_to(chunk.name)
    assert [damage.file for damage in store.version(NAME).verify()] == ["influences/c.0.0"]
    assert refresh(store, SAMPLE).chunks_written == 1
