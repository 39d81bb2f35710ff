"""A study exported to an object store is one plain Zarr group there, or is not there at all."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from influence_dag.errors import StoreError

s3fs: Any = pytest.importorskip("s3fs")


pytestmark = pytest.mark.usefixtures("bucket")


def test_an_export_to_a_bucket_is_read_by_xarray_alone(finished_project, monkeypatch):
    target, artifact = "s3://studies/out/tiny.zarr", "hessian"
    results = finished_project.results
    assert results.export(target, [artifact])["artifacts"] == [artifact]
    read = xr.open_zarr(target, group=artifact, consolidated=True).hessian
    expected = results.open(artifact).hessian
    np.testing.assert_array_equal(read, expected)
    assert read.param.values.tolist() == expected.param.values.tolist()
    assert read.attrs == expected.attrs
    with pytest.raises(StoreError, match=r"tiny.zarr exists \(.*\); name another address"):
        results.export(target, [artifact])
    with monkeypatch.context() as patched:
        patched.setattr(xr.DataTree, "to_zarr", half_written)
        with pytest.raises(StoreError, match=r"writing s3://studies/half\.zarr failed .*no more"):
            results.export("s3://studies/half.zarr", [artifact])
    assert s3fs.S3FileSystem().find("studies/half.zarr") == [], "nothing was left of it"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("s3://nowhere/out.zarr", "writing s3://nowhere/out.zarr failed .*a bucket that exists"),
        ("s3://studies/out.nc", "in an object store, where only a .zarr group is written"),
        ("nothing://studies/out.zarr", "nobody knows nothing://; install what serves"),
    ],
)
def test_what_cannot_be_written_is_refused(finished_project, target, words):
    with pytest.raises(StoreError, match=words):
        finished_project.results.export(target, ["dataset"])


def test_a_folder_takes_no_options_of_object_stores(finished_project, tmp_path):
    with pytest.raises(StoreError, match="is a path; storage_options are for"):
        finished_project.results.export(tmp_path / "x.zarr", storage_options={"anon": True})


def half_written(tree, store, **options):
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    sync(store.set("x/.zarray", default_buffer_prototype().buffer.from_bytes(b"{}")))
    raise OSError("no more")


@pytest.mark.parametrize("ending", [".zarr", ".parquet"])
def test_an_address_of_a_file_is_its_path(finished_project, tmp_path, ending):
    """It was taken for a bucket, without folders in which its first object could be."""
    target = tmp_path / f"out{ending}"
    written = finished_project.results.export(f"file://{target}", ["direct/influences"])
    assert written["file"] == str(target)
    assert [each.name for each in tmp_path.iterdir()] == [target.name]
