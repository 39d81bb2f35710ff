"""A callable's data set, read twice: what a row is when it is used is what it was when it was seen.

The first reading goes through all rows in order and keeps, of each, its hash and its target. The
data set is then made anew, and every later reading of a row is compared with the first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from influence_dag.datasets.sources.base import NotFinite, chosen, not_finite
from influence_dag.datasets.sources.map_style import Block, Form, Workers, joined, read_rows
from influence_dag.datasets.sources.numbers import decimal
from influence_dag.datasets.sources.on_demand import RowsOnDemand, row_bytes, runs
from influence_dag.datasets.sources.preparing import prepared
from influence_dag.datasets.sources.row_keys import equal_rows, input_keys
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

FIRST, AGAIN = 0, 1  # seeds of what a data set draws when rows are read
MADE = 0  # the seed from which it is made


class RereadRows:
    """The rows of the data set that `make` returns, of which blocks are in memory.

    It may draw when it is made, from torch, numpy and Python's `random`, which are seeded. What it
    draws when rows are read, and what it remembers between them, is refused by `read`.
    """

    def __init__(self, make: Callable[[], Any], form: Form, data: DataSettings, which: str):
        self._make, self._form, self._data, self._which = make, form, data, which
        self._workers: Workers | None = None
        self._last: tuple[np.ndarray, Block] | None = None
        self.row_name: Callable[[int], str] = "row {}".format
        self.look_again: Callable[[Any], None] = lambda dataset: None  # at one that was made anew
        self._seed = FIRST
        self._dataset: Any = self.made()
        self.not_finite: dict[str, NotFinite] = {}

    @property
    def dataset(self) -> Any:
        """What the callable has returned."""
        return self._dataset

    def see(self) -> None:
        """Read all rows once: `keys`, `targets`, `weights`, `inputs`, `not_finite`."""
        try:
            self._see()
        finally:
            self.close()

    def _see(self) -> None:
        first = self._fetch(np.arange(1))
        like = {f"x.{name}": part.shape[1:] for name, part in first.inputs.items()}
        like |= {"y": first.target.shape[1:], "weight": first.weights.shape[1:]}
        self._form = replace(self._form, like=like)
        names = chosen(self._form.name, first.inputs, self._data.features.columns)
        types: dict[str, list[np.dtype]] = {name: [] for name in names}
        keys, rest = [], []
        for start, block in chain([(0, first)], self._blocks(1)):
            for name, seen in types.items():
                seen.append(block.inputs[name].dtype)
                self._look_at(name, block.inputs[name], start)
            keys.append(self._keys(block, names))
            rest.append(replace(block, inputs={}))
        self.keys = np.concatenate(keys)
        others = joined(self._form.name, rest)
        self.targets, self.weights = others.target, others.weights
        self.inputs = {name: self._on_demand(name, first, seen) for name, seen in types.items()}

    def read(self, positions: np.ndarray) -> Block:
        """Rows by position, if they are what they were. Raises `DataError` for one that is not."""
        if self._last is not None and np.array_equal(self._last[0], positions):
            return self._last[1]
        try:
            if is_new := self._seed == FIRST:
                self._remake()
            if len(self._differing(positions, block := self._fetch_again(positions))):
                raise self._moved()
            if is_new:
                self.look_again(self._dataset)
        except BaseException:  # whoever keeps the error would keep the workers
            self.close()
            raise
        self._last = positions, block
        return block

    def close(self) -> None:
        """End the workers, and forget the data set; both come again when rows are asked for."""
        if self._workers is not None:
            self._workers.close()
        self._workers = self._last = self._dataset = None
        self._seed = FIRST

    def made(self) -> Any:
        """The data set made once more, from the same seeds."""
        from influence_dag.objective.modules import seeded  # here: it imports torch

        with seeded(MADE):
            return self._make()

    def _remake(self) -> None:
        self.close()
        self._seed, self._dataset = AGAIN, self.made()

    def _blocks(self, start: int) -> Iterator[tuple[int, Block]]:
        """Where each block begins, and its rows."""
        assert self._form.like is not None
        size = 8 * sum(int(np.prod(shape)) for shape in self._form.like.values())
        for run in runs(len(self._dataset), size, start):
            yield run.start, self._fetch(np.arange(run.start, run.stop))

    def _fetch(self, positions: np.ndarray) -> Block:
        from influence_dag.objective.modules import seeded

        if self._data.workers and len(positions) > 1:
            self._workers = self._workers or Workers(self._dataset, self._data.workers, self._seed)
            return self._workers.read(positions, self._form)
        with seeded(self._seed):
            return read_rows(self._dataset, positions.tolist(), self._form)

    def _fetch_again(self, positions: np.ndarray) -> Block:
        """Rows read last first, so that their order does not decide what they are."""
        if len(positions) and positions.max() >= len(self._dataset):
            raise self._moved()
        block = self._fetch(positions[::-1])
        return Block(
            {name: values[::-1] for name, values in block.inputs.items()},
            block.target[::-1],
            block.weights[::-1],
        )

    def _look_at(self, name: str, values: np.ndarray, start: int) -> None:
        if found := not_finite(values, start):
            known = self.not_finite.get(name)
            self.not_finite[name] = replace(known, rows=known.rows + found.rows) if known else found

    def _keys(self, block: Block, names: Any) -> np.ndarray:
        """Hashes of the inputs as the model sees them; what is no number is refused later."""
        x = {name: block.inputs[name] for name in names}
        if any(values.dtype.kind not in "fiub" for values in x.values()):
            return np.zeros((len(block.target), 16), np.uint8)
        return input_keys({name: prepared(x[name], self._data.features) for name in x})

    def _on_demand(self, name: str, first: Block, types: list[np.dtype]) -> RowsOnDemand:
        dtype = np.result_type(*types)
        shape = (len(self.keys), *first.inputs[name].shape[1:])

        def read(positions: np.ndarray) -> np.ndarray:
            if not len(positions):
                return np.empty((0, *shape[1:]), dtype)
            values = self.read(positions).inputs[name]
            if dtype.kind == "f" and values.dtype.kind in "iu":
                place = "{}: row {}".format
                values = decimal(
                    values, name=name, row_name=lambda k: place(self._form.name, positions[k])
                )
            return values.astype(dtype, copy=False)

        return RowsOnDemand(shape, dtype, read)

    def _differing(self, positions: np.ndarray, block: Block) -> np.ndarray:
        """Which of the rows are others than they were."""
        same = (self._keys(block, self.inputs) == self.keys[positions]).all(axis=1)
        for before, now in (
            (self.targets[positions], block.target),
            (self.weights[positions], block.weights),
        ):
            same &= equal_rows(before, now)
        return positions[~same]

    def _moved(self) -> DataError:
        """The refusal, with how many rows there are that move: all are read, last first."""
        self._remake()
        count = len(self.keys)
        there = min(count, len(self._dataset))
        moved = list(range(there, count))
        size = row_bytes(*self.inputs.values())
        for run in reversed(list(runs(there, size))):
            positions = np.arange(run.start, run.stop)
            moved += self._differing(positions, self._fetch_again(positions)).tolist()
        return moved_rows(self._which, self._form.name, moved, count, self.row_name)


def moved_rows(
    which: str, name: str, moved: Sequence[int], count: int, row_name: Callable[[int], str]
) -> DataError:
    """The refusal of rows that are others when they are read again."""
    return DataError(
        f"data.{which}: {name}: {row_name(int(min(moved, default=0)))} is another one when it is "
        f"read again ({len(moved)} of {count} rows are): the data set draws at random (an "
        "augmentation, a shuffle, a generator without a seed); draw once, when it is made, from a "
        "fixed seed, or store the rows"
    )
