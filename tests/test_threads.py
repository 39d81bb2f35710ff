"""Threads that do what they are given: all of it, several at once, errors told, never a hang."""

import threading
import time
import weakref

import pytest
from interrupts import each_interruption

from influence_dag.stages.blocks import stream
from influence_dag.store.threads import Workers, each_by_threads


def test_each_item_is_done_once_by_several_threads():
    done: list[tuple[int, int]] = []

    def act(item):
        time.sleep(0.002)
        done.append((item, threading.get_ident()))

    each_by_threads(act, range(40), 4)
    assert sorted(item for item, _ in done) == list(range(40))
    assert len({thread for _, thread in done} - {threading.get_ident()}) == 4


def test_nothing_to_do_is_done():
    each_by_threads(pytest.fail, [], 4)


def test_the_first_error_is_raised_and_what_has_not_begun_is_dropped():
    done = []

    def act(item):
        time.sleep(0.005)
        done.append(item)
        if item == 3:
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        each_by_threads(act, range(1000), 2)
    assert len(done) < 100


def test_what_was_given_is_not_kept_alive_by_a_thread_that_waits():
    class Block:
        pass

    with Workers(lambda block: None, 1) as workers:
        block = Block()
        seen = weakref.ref(block)
        workers.give(block)
        workers.end()
        del block
        deadline = time.monotonic() + 5
        while seen() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert seen() is None


def test_leaving_waits_for_what_was_given():
    done = []

    def act(item):
        time.sleep(0.02)
        done.append(item)

    def work():
        with Workers(act, 1) as workers:
            workers.give(1)
            workers.give(2)
            raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        work()
    assert done == [1, 2]


def test_wherever_ctrl_c_meets_threads_they_end():
    before = threading.active_count()
    steps = list(each_interruption(lambda: each_by_threads(abs, [1, 2, 3], 2), lambda code: True))
    assert len(steps) > 30
    assert threading.active_count() <= before + 1


def test_wherever_ctrl_c_meets_blocks_that_are_written_it_is_left():
    written: list[int] = []

    def work():
        stream(((item, item) for item in range(3)), lambda item, values: written.append(item))

    steps = list(each_interruption(work, lambda code: True))
    assert len(steps) > 30
    assert written[-3:] == [0, 1, 2]
