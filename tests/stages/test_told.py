"""How far a long step is, in the run's log."""

import itertools

from influence_dag.stages.told import told


def told_of(total: int, seconds_each: float) -> list[str]:
    said: list[str] = []
    clock = itertools.count(0.0, seconds_each).__next__
    blocks = (block for block in range(total))
    assert [*told(blocks, total, "influences", said.append, clock=clock)] == [*range(total)]
    return said


def test_long_work_is_told_about_every_twentieth():
    said = told_of(400, 1.0)
    assert len(said) == 19
    assert said[0] == "influences: 5 % of 400 blocks, 1/s, 6 min left"
    assert said[-1] == "influences: 95 % of 400 blocks, 1/s, 20 s left"


def test_short_work_is_not_told_and_lines_are_seconds_apart():
    assert told_of(400, 1e-4) == []
    assert len(told_of(400, 0.025)) == 4  # every two seconds of ten


def test_of_few_blocks_each_is_told_but_the_last():
    assert [each.split(",")[0] for each in told_of(3, 60.0)] == [
        "influences: 33 % of 3 blocks",
        "influences: 67 % of 3 blocks",
    ]


def test_who_computes_is_told_when_nobody_takes_more():
    closed = []

    def results():
        try:
            yield from range(5)
        finally:
            closed.append(True)

    stream = told(results(), 5, "influences", lambda line: None)
    next(stream)
    stream.close()
    assert closed == [True]
