"""Metadata and chunks written and read directly are Zarr's."""

import json

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from influence_dag.errors import StoreError
from influence_dag.store import Coordinate, Variable
from influence_dag.store.arrays import chunk_file, create_variable, round_mantissas
from influence_dag.store.chunks import read_array, read_region, write_array, write_chunk
from influence_dag.store.posix.folders import Folder

STRING = np.dtypes.StringDType()
ATTRS = {"long_name": "what it is", "sizes": [1, 2]}
REGIONS = [
    (),
    (slice(2, 9),),
    (slice(2, 9), slice(1, 5)),
    (slice(3, 3),),
    (slice(9, 10), slice(6, 7)),
]


def zarrs_own(folder, name, dims, values, chunks) -> zarr.Array:
    """The same array as Zarr itself makes it."""
    array = zarr.open_group(folder, mode="a", zarr_format=3).create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        compressors=(BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()),
        fill_value=values.dtype.type(np.nan) if values.dtype.kind in "fc" else None,
        dimension_names=dims,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=ATTRS,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return array


def same_files(ours, theirs) -> bool:
    """Whether two arrays' folders hold the same bytes, metadata compared as JSON."""
    names = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()} == names
    return all(
        json.loads((ours / name).read_bytes()) == json.loads((theirs / name).read_bytes())
        if name.name == "zarr.json"
        else (ours / name).read_bytes() == (theirs / name).read_bytes()
        for name in names
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int64", "bool"])
def test_zarr_writes_the_same_files_and_reads_them(tmp_path, dtype):
    values = (np.random.default_rng(0).normal(size=(10, 7)) * 9 + 1).astype(dtype)
    variable = Variable("a", ("x", "y"), (10, 7), dtype, (4, 3), ATTRS)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    zarrs_own(theirs, "a", variable.dims, values, variable.chunks)
    ours.mkdir()
    create_variable(Folder(ours), variable)
    for index in np.ndindex(variable.grid):
        written = write_chunk(Folder(ours), variable, index, values[variable.region(index)])
        content = (ours / chunk_file("a", index)).read_bytes()
        assert written == (len(content), int.from_bytes(content[-4:], "little"))
    assert same_files(ours / "a", theirs / "a")
    for region in REGIONS:
        read = read_region(variable, region, lambda file: (theirs / file).read_bytes())
        np.testing.assert_array_equal(read, values[region])


@pytest.mark.parametrize(
    "values",
    [
        np.array(["t0001", "", "naïve 数字 🙂", "x" * 300], STRING),
        np.array([["a", "b"], ["c", "dé"]], STRING),
        np.array([], STRING),
        np.array("one", STRING),
        np.array([True, False, True]),
        np.arange(5, dtype=np.uint64) + 2**63,
        np.array([1.5, np.nan, -np.inf]),
        np.zeros((0, 3)),
        np.array(2.5),
        np.arange(6, dtype=">i4").reshape(2, 3).T,
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_labels_are_zarrs_too(tmp_path, values):
    dims = tuple("xyz"[: values.ndim])
    (tmp_path / "ours").mkdir()
    write_array(Folder(tmp_path / "ours"), Coordinate("a", dims, values, ATTRS))
    whole = tuple(max(length, 1) for length in values.shape)
    zarrs_own(tmp_path / "theirs", "a", dims, values, whole)
    assert same_files(tmp_path / "ours" / "a", tmp_path / "theirs" / "a")
    dtype = values.dtype if values.dtype.kind == "T" else values.dtype.newbyteorder("=")
    read = read_array("a", dtype, values.shape, lambda f: (tmp_path / "theirs" / f).read_bytes())
    np.testing.assert_array_equal(read, values)
    assert read.dtype == dtype


def test_a_number_is_a_chunk_without_dimensions(tmp_path):
    variable = Variable("a", (), (), "float64", ())
    create_variable(Folder(tmp_path), variable)
    write_chunk(Folder(tmp_path), variable, (), np.array(2.5))
    assert zarr.open_array(tmp_path, path="a", mode="r")[...] == 2.5
    assert read_region(variable, (), lambda file: (tmp_path / file).read_bytes()) == 2.5


def test_labels_of_a_type_that_is_not_kept_are_refused():
    with pytest.raises(StoreError, match=r"'day'.*datetime64.*numbers, truth values or text"):
        Coordinate("day", ("day",), np.array(["2026-01-01"], "datetime64[D]"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rounded_value_moves_by_more_than_the_relative_error(dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    tiny = np.finfo(dtype).tiny
    below = smallest * np.array([1, 3, 5, 12345])  # whose mantissas begin late
    ends = [-0.0, 0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, tiny, 1.1 * tiny, np.pi]
    values = np.concatenate([below, -below, np.array(ends, dtype)]).astype(dtype)
    rounded = round_mantissas(values, 1e-2)
    finite = np.isfinite(values)
    before, after = values[finite], rounded[finite]
    assert (np.abs(after - before) <= 1e-2 * np.abs(before)).all()
    np.testing.assert_array_equal(rounded[~finite], values[~finite])
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(values))
    assert rounded[-1] != values[-1]
