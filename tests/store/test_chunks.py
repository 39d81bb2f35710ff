"""Chunks written and read directly are Zarr's, byte by byte."""

import numpy as np
import pytest
import zarr

from influence_dag.store import Variable
from influence_dag.store.arrays import chunk_file, create_variable
from influence_dag.store.chunks import read_region, write_chunk

REGIONS = [
    (),
    (slice(2, 9),),
    (slice(2, 9), slice(1, 5)),
    (slice(3, 3),),
    (slice(9, 10), slice(6, 7)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_zarr_writes_the_same_files_and_reads_them(tmp_path, dtype):
    values = (np.random.default_rng(0).normal(size=(10, 7)) * 9 + 1).astype(dtype)
    variable = Variable("a", ("x", "y"), (10, 7), dtype, (4, 3))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        create_variable(zarr.open_group(folder, mode="w", zarr_format=3), variable)
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(theirs, path="a", mode="r+")[...] = values
    for index in np.ndindex(variable.grid):
        size = write_chunk(ours, variable, index, values[variable.region(index)])
        content = (ours / chunk_file("a", index)).read_bytes()
        assert content == (theirs / chunk_file("a", index)).read_bytes()
        assert size == len(content)
    np.testing.assert_array_equal(zarr.open_array(ours, path="a", mode="r")[...], values)
    for region in REGIONS:
        read = read_region(variable, region, lambda file: (theirs / file).read_bytes())
        np.testing.assert_array_equal(read, values[region])


def test_a_number_is_a_chunk_without_dimensions(tmp_path):
    variable = Variable("a", (), (), "float64", ())
    create_variable(zarr.open_group(tmp_path, mode="w", zarr_format=3), variable)
    write_chunk(tmp_path, variable, (), np.array(2.5))
    assert zarr.open_array(tmp_path, path="a", mode="r")[...] == 2.5
    assert read_region(variable, (), lambda file: (tmp_path / file).read_bytes()) == 2.5
