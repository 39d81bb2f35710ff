import threading
import time
from contextlib import nullcontext
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_dag.stages.blocks import Tile, stream, tiles


@st.composite
def grids(draw):
    dimensions = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(dimensions))
    chunks = tuple(draw(st.integers(1, 4)) for _ in range(dimensions))
    grid = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    outdated = draw(st.sets(st.sampled_from(list(np.ndindex(grid)))))
    return shape, chunks, outdated


@given(grids(), st.integers(1, 200))
def test_tiles_cover_every_outdated_chunk_once_and_no_other(grid, max_values):
    shape, chunks, outdated = grid
    touched = np.zeros(shape, int)
    found = tiles(outdated, chunks, shape, max_values=max_values)
    for tile in found:
        touched[tile.region] += 1
        assert touched[tile.region].shape == tile.shape
    wanted = np.zeros(shape, int)
    for index in outdated:
        wanted[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))] = 1
    np.testing.assert_array_equal(touched, wanted)
    assert sorted(index for tile in found for index in tile.chunk_indices) == sorted(outdated)


@given(grids(), st.integers(1, 200))
def test_tiles_are_within_the_limit_or_one_chunk(grid, max_values):
    shape, chunks, outdated = grid
    for tile in tiles(outdated, chunks, shape, max_values=max_values):
        assert prod(tile.shape) <= max_values or len(tile.chunk_indices) == 1


def test_tiles_take_all_test_rows_before_more_training_rows():
    every = list(np.ndindex(3, 4))
    found = tiles(every, (10, 10), (25, 40), max_values=500)
    assert [tile.region for tile in found] == [
        (slice(0, 25), slice(0, 20)),
        (slice(0, 25), slice(20, 40)),
    ]
    (whole,) = tiles(every, (10, 10), (25, 40), max_values=1000)
    assert whole.shape == (25, 40)
    assert tiles([], (10, 10), (25, 40), max_values=1) == []


def test_a_scalar_is_one_tile():
    assert tiles([()], (), (), max_values=1) == [Tile((), (), ((),))]


def computed(work, compute):
    """What `compute` makes of each tile, when it is asked for."""
    return ((tile, compute(tile)) for tile in work)


def row(n):
    return tiles([(i,) for i in range(n)], (1,), (n,), max_values=1)


@pytest.mark.parametrize("writers", [1, 2, 5])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_every_tile_is_computed_in_order_and_written_once(writers, in_flight):
    asked, written = [], []

    def compute(tile):
        assert threading.current_thread() is threading.main_thread()
        asked.append(tile)
        return tile.start[0] ** 2

    def write(tile, values):
        assert threading.current_thread() is not threading.main_thread()
        written.append((tile.start[0], values))

    stream(computed(row(30), compute), write, writers=writers, in_flight=in_flight)
    assert asked == row(30)
    assert sorted(written) == [(i, i**2) for i in range(30)]


@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("slow", ["compute", "write"])
def test_only_a_few_tiles_exist_at_a_time(in_flight, slow):
    lock, alive, most = threading.Lock(), 0, 0

    class Values:
        def __init__(self):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    def compute(tile):
        values = Values()
        time.sleep(0.002 * (slow == "compute"))
        return values

    stream(
        computed(row(40), compute),
        lambda tile, values: time.sleep(0.002 * (slow == "write")),
        writers=2,
        in_flight=in_flight,
    )
    assert most <= in_flight
    assert alive == 0


def test_computing_goes_on_while_others_are_written():
    begun = threading.Event()

    def compute(tile):
        if tile.start[0] == 1:
            assert begun.wait(5), "the first tile is not being written"
        return tile

    def write(tile, values):
        begun.set()

    stream(computed(row(2), compute), write)


def test_an_error_of_the_writer_stops_the_computation():
    asked, written = [], []

    def write(tile, values):
        if tile.start[0] == 3:
            raise OSError("disk full")
        written.append(tile.start[0])

    with pytest.raises(OSError, match="disk full"):
        stream(computed(row(1000), asked.append), write, in_flight=4)
    assert len(asked) < 12
    assert set(range(3)) <= set(written) <= set(range(12))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_computation_loses_nothing_that_was_computed(error):
    written = []

    def compute(tile):
        if tile.start[0] == 5:
            raise error
        return tile

    def write(tile, values):
        time.sleep(0.01)
        written.append(tile.start[0])

    with pytest.raises(error):
        stream(computed(row(10), compute), write)
    assert written == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fails", ["compute", "write", None])
def test_whoever_computes_is_told_that_nobody_asks_for_more(fails):
    ended = []

    def results():
        try:
            for tile in row(10):
                if fails == "compute" and tile.start[0] == 5:
                    raise OSError("no device")
                yield tile, tile
        finally:
            ended.append(True)

    def write(tile, values):
        if fails == "write" and tile.start[0] == 5:
            raise OSError("disk full")

    with pytest.raises(OSError, match=r"no device|disk full") if fails else nullcontext():
        stream(results(), write)
    assert ended == [True]


def test_no_thread_stays_behind():
    before = threading.active_count()
    stream(computed(row(10), str), lambda tile, values: None, writers=3)
    with pytest.raises(ValueError, match="in_flight is 0"):
        stream(computed(row(10), str), lambda tile, values: None, in_flight=0)
    assert threading.active_count() == before


def test_nothing_to_do_is_done():
    stream(computed([], str), lambda tile, values: None)
