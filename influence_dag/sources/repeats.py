"""Rows that code makes are read twice: a row that is drawn anew each time is nobody's row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from influence_dag.data_settings import DataSettings, Which
from influence_dag.errors import DataError
from influence_dag.sources.base import INPUT, Source
from influence_dag.sources.callables import as_table, in_parts, made, read_callable, read_item
from influence_dag.sources.texts import texts


def read_repeatably(name: str, data: DataSettings, which: Which, root: Path) -> Source:
    """The rows of a callable's data set, if they are the same when they are made and read again.

    The callable runs from the same seeds of torch, numpy and Python both times: what it draws from
    these it may draw. The rows are read from other seeds the second time, and last row first, so
    that nothing drawn on reading them, nor their order, decides what they are. Raises `DataError`
    naming the first row that moved.
    """
    from influence_dag.seeding import seeded  # here: it imports torch

    with seeded(0):
        source = read_callable(name, data, which, root)
    with seeded(0):
        again = made(name, root, which)
    rows = reversed(range(len(source.target)))
    if as_table(again) is not None:
        with seeded(0):
            other = read_callable(name, data, which, root)
        moved = [row for row in rows if _moved(source, other, row)]
    else:
        with seeded(1):
            moved = [row for row in rows if _differs(source, again, row)]
    if moved:
        raise DataError(
            f"data.{which}: {source.name}: {source.row_name(moved[-1])} is another one when it is "
            f"read again ({len(moved)} of {len(source.target)} rows are): the data set draws at "
            "random (an augmentation, a shuffle, a generator without a seed); draw once, when it "
            "is made, from a fixed seed, or store the rows"
        )
    return source


def _moved(source: Source, other: Source, row: int) -> bool:
    """Whether a row of a table is another one in the same table made again."""
    if row >= len(other.target) or list(source.inputs) != list(other.inputs):
        return True
    pairs = [(source.inputs[name][row], other.inputs[name][row]) for name in source.inputs]
    return not all(_same(*pair) for pair in [*pairs, (source.target[row], other.target[row])])


def _differs(source: Source, dataset: Any, row: int) -> bool:
    if row >= len(dataset):
        return True
    return any(
        not _same(kept, value)
        for kept, value in _pairs(source, in_parts(read_item(dataset, source.name, row)), row)
    )


def _pairs(source: Source, item: Any, row: int) -> Iterator[tuple[Any, Any]]:
    """What was read of a row and what is read now."""
    x, y, *weight = item
    named = x if isinstance(x, dict) else {INPUT: x}
    for key, values in source.inputs.items():
        yield values[row], named.get(key)
    yield source.target[row], _as_kept(source.target, y)
    if source.weights is not None:
        yield source.weights[row], weight[0] if weight else None


def _as_kept(target: np.ndarray, y: Any) -> Any:
    return texts(y) if target.dtype.kind == "O" else y


def _same(kept: Any, value: Any) -> bool:
    one, other = np.asarray(kept), np.asarray(value)
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f" and other.dtype.kind in "fiub":
        return np.array_equal(one, other, equal_nan=True)
    return np.array_equal(one, other)
