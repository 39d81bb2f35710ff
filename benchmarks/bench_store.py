"""What versions, keys and checksums cost: `pytest benchmarks/bench_store.py`."""

import itertools
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from influence_dag.fingerprints import chunk_keys, fingerprint, grid_keys, row_fingerprints
from influence_dag.stages.blocks import stream, tiles
from influence_dag.store import ArtifactStore, Coordinate, Layout, Variable, pair_chunks

NAME = "direct/influences"
N_TEST, N_TRAIN = 250, 50_000


def artifact(n_test, n_train, chunks=None):
    chunks = chunks or pair_chunks(n_test, n_train, itemsize=4)
    variable = Variable("influences", ("test", "train"), (n_test, n_train), "float32", chunks)
    ids = {"test": n_test, "train": n_train}
    coordinates = tuple(
        Coordinate(dim, (dim,), np.array([f"{dim}-{i:05d}" for i in range(n)]))
        for dim, n in ids.items()
    )
    rows = {dim: row_fingerprints({"x": np.arange(n)}) for dim, n in ids.items()}
    axes = [chunk_keys(keys, chunk) for keys, chunk in zip(rows.values(), chunks, strict=True)]
    keys = {"influences": grid_keys(fingerprint("formula 1"), *axes)}
    return Layout((variable,), coordinates, {"damping": 0.01}), keys


def refresh(store, layout, keys, values, max_values=2**24):
    variable = layout["influences"]
    with store.new_version(NAME, layout) as draft:
        todo = tiles(
            draft.outdated(keys)["influences"],
            variable.chunks,
            variable.shape,
            max_values=max_values,
        )

        def write(tile, block):
            tile_keys = {i: keys["influences"][i].tobytes() for i in tile.chunk_indices}
            draft.write("influences", tile.start, block, tile_keys)

        stream(((tile, values[tile.region]) for tile in todo), write, writers=2)
    return draft


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    return rng.standard_normal((N_TEST, N_TRAIN), dtype=np.float32)


@pytest.fixture
def folders(tmp_path):
    numbers = itertools.count()
    return lambda: tmp_path / str(next(numbers))


@pytest.mark.benchmark(group="write 50 MB")
def test_write_plain_zarr(benchmark, folders, values):
    """The yardstick: the same chunks and codec, all at once, nothing fsynced."""

    def write():
        array = zarr.create_array(
            folders(),
            shape=values.shape,
            dtype=values.dtype,
            chunks=pair_chunks(*values.shape, itemsize=4),
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
        )
        array[...] = values

    benchmark.pedantic(write, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="write 50 MB")
def test_write_version(benchmark, folders, values):
    """The same through plan, journal, checksums, publication and fsync."""
    layout, keys = artifact(*values.shape)
    benchmark.pedantic(
        lambda: refresh(ArtifactStore(folders()), layout, keys, values), rounds=5, warmup_rounds=1
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory, values):
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    layout, keys = artifact(*values.shape)
    refresh(store, layout, keys, values)
    return store, layout, keys


@pytest.mark.benchmark(group="nothing changed, 250 x 50,000")
def test_plan(benchmark, stored):
    store, layout, keys = stored
    assert benchmark(store.plan, NAME, layout, keys).up_to_date


@pytest.mark.benchmark(group="nothing changed, 250 x 50,000")
def test_expected_keys(benchmark):
    """Layout and keys from rows of one number each, 50,000 rows hashed one by one."""
    benchmark(artifact, N_TEST, N_TRAIN)


@pytest.mark.benchmark(group="nothing changed, 250 x 50,000")
def test_open(benchmark, stored):
    store, _, _ = stored
    benchmark(lambda: xr.open_zarr(store.root / NAME / "current"))


@pytest.mark.benchmark(group="nothing changed, 250 x 50,000")
def test_open_version(benchmark, stored):
    store, _, _ = stored
    benchmark(lambda: store.version(NAME).open())


@pytest.mark.benchmark(group="3 of 25 columns of chunks changed")
def test_incremental(benchmark, stored, values):
    store, layout, keys = stored
    salts = itertools.count(1)

    def write():
        changed = {"influences": keys["influences"].copy()}
        changed["influences"][:, :3, 0] += np.uint8(next(salts))
        draft = refresh(store, layout, changed, values)
        assert draft.chunks_written == 3 * keys["influences"].shape[0]

    benchmark.pedantic(write, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="20,000 small chunks")
@pytest.mark.parametrize("what", ["plan", "clone and publish"])
def test_many_chunks(benchmark, tmp_path, what):
    layout, keys = artifact(200, 1_600, chunks=(4, 4))
    store = ArtifactStore(tmp_path)
    values = np.zeros((200, 1_600), np.float32)
    refresh(store, layout, keys, values)
    if what == "plan":
        assert benchmark(store.plan, NAME, layout, keys).up_to_date
    else:
        salts = itertools.count()

        def publish():
            attributed = Layout(layout.variables, layout.coordinates, {"salt": next(salts)})
            assert refresh(store, attributed, keys, values).chunks_written == 0

        benchmark.pedantic(publish, rounds=3)
    shutil.rmtree(tmp_path)
