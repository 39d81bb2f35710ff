"""What the arrays say in short: sums, strongest pairs, self-influence.

Kept by blocks as the influences are. Each block of influences leaves a sum and its strongest
entries for each of its test rows; what is said of a test row is merged from these, so that an edit
of the data reads the blocks that it touched and merges.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from influence_dag.fingerprints import Keys, fingerprint
from influence_dag.stages import dampings, methods, naming, rankings, seen
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.dampings import DampingAxis
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.graph import has_self_influence
from influence_dag.stages.self_influences import NAMES, OwnSolves, places
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Draft, Layout, Variable

FORMULA = FORMULAS["summary"]

Arrays = dict[str, np.ndarray]


def refresh(bench: Workbench, method: str) -> Update:
    """Sums over each axis, each test row's strongest pairs, self-influence, loss and prediction."""
    summary = bench.once(("summary", method), lambda: _Summary(bench, method))
    if has_self_influence(bench.study, method):
        methods.check_curvature(bench, method)
        methods.check_gradients(bench)
    info = {"test_rows": summary.test.count, "train_rows": summary.train.count}
    return refresh_blocks(
        bench, naming.summary(method), summary.layout(), summary.parts(), info=info
    )


_TRAIN, _TEST = ("train",), ("test",)
_STRONGEST = ("test", "position")
_Named = dict[str, tuple[str, ...]]  # name → dims
_OF_TRAIN: _Named = {"train_sum": _TRAIN, "train_abs_mean": _TRAIN}
_OF_BLOCKS: _Named = {"blocks": ("test", "train_block", "entry")}
_OF_TEST: _Named = {
    "test_sum": _TEST,
    "test_abs_mean": _TEST,
    "top_train": _STRONGEST,
    "top_influence": _STRONGEST,
    "bottom_train": _STRONGEST,
    "bottom_influence": _STRONGEST,
}
_OF_SOLVES: _Named = dict.fromkeys(NAMES, _TRAIN)
Of = Literal["train", "blocks", "solves"]
_NAMES: dict[Of, _Named] = {"train": _OF_TRAIN, "blocks": _OF_BLOCKS, "solves": _OF_SOLVES}


@dataclass(frozen=True)
class SummaryBlocks(Kernel):
    """What is computed from blocks of influences or of gradients; the rest is merged from it."""

    method: str
    of: Of

    @property
    def runs_code(self) -> bool:
        return self.of == "solves"

    def at(self, bench: Workbench) -> Compute:
        summary = bench.once(("summary", self.method), lambda: _Summary(bench, self.method))
        if self.of == "solves":
            return summary.solves
        return summary.train_sums if self.of == "train" else summary.blocks


class _Summary:
    """Layout, keys and blocks of one method's summary.

    Sums are float64 and added in the order of the blocks, so that merging kept and new blocks
    gives what a run from nothing gives.
    """

    def __init__(self, bench: Workbench, method: str):
        self.bench, self.method = bench, method
        self.version = bench.require(naming.influences(method))
        self.test = bench.axis_of(self.version, "test")
        self.train = bench.axis_of(self.version, "train")
        self.axis = DampingAxis.of(bench, method)
        self.chunks = self.version.variables["influences"].chunks[-2:]
        self.top = min(bench.settings.summary.top, self.train.count)
        self.few = min(self.top, self.chunks[1])

    def layout(self) -> Layout:
        """Everything is cut as the influences are."""
        named = _OF_TRAIN | _OF_BLOCKS | _OF_TEST
        if has_self_influence(self.bench.study, self.method):
            named |= _OF_SOLVES
        words = wording_of(self.bench, self.method).summary()
        variables = [self._variable(name, dims, words[name]) for name, dims in named.items()]
        variables += self._seen_variables()
        labels = (*self.test.coordinates, *self.train.coordinates, self.axis.coordinate)
        made = {
            **provenance(),
            "influences_version": self.version.number,
            "influences_data_version": self.version.data_version,
        }
        return Layout(
            tuple(variables), labels, methods.method_attributes(self.bench, self.method), made
        )

    def _variable(self, name: str, dims: tuple[str, ...], about: dict[str, str]) -> Variable:
        test, train = self.chunks
        cut = {
            "test": (len(self.test), test),
            "train": (len(self.train), train),
            "train_block": (-(-len(self.train) // train), 1),
            "entry": (2 + 4 * self.few,) * 2,
            "position": (self.top,) * 2,
        }
        dtype = "int64" if name.endswith("_train") else "float64"
        axes = ((dim, *cut[dim]) for dim in dims)
        return self.axis.variable(name, *axes, dtype=dtype, about=about)

    def _seen_variables(self) -> Iterator[Variable]:
        """Loss and prediction of each row, whatever λ is."""
        words, cut = seen.words(self.bench), dict(zip(("test", "train"), self.chunks, strict=True))
        for name, split in seen.NAMES.items():
            size = len(self.test if split == "test" else self.train)
            yield Variable(name, (split,), (size,), "float64", (cut[split],), words[name])

    def _seen_parts(self) -> Iterator[Part]:
        for axis, chunk in zip((self.test, self.train), self.chunks, strict=True):
            names = tuple(name for name, split in seen.NAMES.items() if split == axis.name)
            kernel = seen.SeenRows(naming.influences(self.method), axis.name, chunk)
            keys = seen.keys_of(self.bench, axis, chunk)
            yield Part(names, keys, kernel, may_lack=True)

    def parts(self) -> list[Part]:
        """What is computed from blocks of influences, then what is merged from that."""
        read = (self.version.attrs["base_key"], self.bench.settings.store.max_relative_error)
        tests, trains = self.test.digests(self.chunks[0]), self.train.digests(self.chunks[1])
        of_train = self._keys("train", read, fingerprint(tests))(trains)
        of_blocks = self._keys("blocks", read, self.top)(tests, trains)
        of_test = self._keys("test", read, self.top, fingerprint(trains))(tests)
        parts = [
            self._part("train", of_train),
            self._part("blocks", of_blocks),
            Part(tuple(_OF_TEST), of_test, here=self.merged, may_lack=True),
        ]
        if has_self_influence(self.bench.study, self.method):
            solves = self.solves
            keys = self._keys("solves", solves.key)(solves.rows.digests(self.chunks[1]))
            parts.append(self._part("solves", keys))
        return [*parts, *self._seen_parts()]

    def _part(self, of: "Of", keys: Keys) -> Part:
        return Part(tuple(_NAMES[of]), keys, SummaryBlocks(self.method, of), may_lack=True)

    @cached_property
    def solves(self) -> "OwnSolves":
        return OwnSolves(self.bench, self.method, self.train, chunk=self.chunks[1])

    def _keys(self, *shared: object) -> Callable[..., Keys]:
        prefix = fingerprint("summary", FORMULA, *shared)
        return lambda *axes: self.axis.keys(prefix, *axes)

    def _read(self, place: int, tests: slice, trains: slice) -> np.ndarray:
        """One block of the influences at one λ as it is stored, with its holes."""
        return dampings.at(self.version, "influences", place, tests, trains)

    def train_sums(self, tile: Tile) -> Arrays:
        """Sums over the test rows that exist; NaN where a training row is missing."""
        sums, (start, stop) = np.zeros((2, *tile.shape)), (tile.start[-1], tile.stop[-1])
        for k, place in places(tile):
            for trains, tests in itertools.product(
                pieces(start, stop, self.chunks[1]), pieces(0, len(self.test), self.chunks[0])
            ):
                block = self._read(place, tests, trains)[self.test.valid[tests]]
                columns = slice(trains.start - start, trains.stop - start)
                sums[:, k, columns] += _sums(block, axis=0)
        sums[..., ~self.train.valid[start:stop]] = np.nan
        return {"train_sum": sums[0], "train_abs_mean": sums[1] / max(1, self.test.count)}

    def blocks(self, tile: Tile) -> Arrays:
        """Of each block of influences, the sums and the strongest entries of each test row."""
        left = np.full((*tile.shape, 2 + 4 * self.few), np.nan)
        start, stop = tile.start[-2], tile.stop[-2]
        for k, place in places(tile):
            for tests, block in itertools.product(
                pieces(start, stop, self.chunks[0]), range(tile.start[-1], tile.stop[-1])
            ):
                rows = tests.start - start + np.flatnonzero(self.test.valid[tests])
                left[k, rows, block - tile.start[-1]] = self._block(place, tests, block)
        return {"blocks": left}

    def _block(self, place: int, tests: slice, block: int) -> np.ndarray:
        size = self.chunks[1]
        trains = slice(block * size, min((block + 1) * size, len(self.train)))
        slots = trains.start + np.flatnonzero(self.train.valid[trains])
        values = self._read(place, tests, trains)[self.test.valid[tests]]
        values = values[:, slots - trains.start]
        strongest = rankings.strongest(values, slots, self.few)
        flat = (len(values), len(rankings.ENDS) * self.few)  # no -1: there may be no row at all
        return np.column_stack(
            [*_sums(values, axis=1), *(each.reshape(flat) for each in strongest)]
        )

    def merged(self, tile: Tile, draft: Draft) -> Arrays:
        """What is said of a test row, from what its blocks have left."""
        start, stop = tile.start[-1], tile.stop[-1]
        sums = np.empty((2, *tile.shape))
        values, slots = np.empty((2, *tile.shape, len(rankings.ENDS), self.top))
        blocks = draft.layout["blocks"]
        row_bytes = 8 * int(np.prod(blocks.shape[-2:]))
        at_once = max(1, self.bench.settings.compute.block_bytes // (4 * row_bytes))
        for k, place in places(tile):
            for tests in pieces(start, stop, at_once):
                left = draft.read("blocks", *dampings.lead(blocks, place), tests)
                left = left.reshape(left.shape[-3:])
                at = (k, slice(tests.start - start, tests.stop - start))
                sums[(slice(None), *at)] = left[..., :2].sum(axis=1).T
                few = left[..., 2:].reshape(*left.shape[:2], 2, len(rankings.ENDS), self.few)
                values[at], slots[at] = rankings.merged(few[:, :, 0], few[:, :, 1], self.top)
        slots = np.nan_to_num(slots, nan=-1).astype(np.int64)  # of test rows that are missing
        return {"test_sum": sums[0], "test_abs_mean": sums[1] / max(1, self.train.count)} | {
            f"{name}_{what}": array[..., end, :]
            for end, name in enumerate(rankings.ENDS)
            for what, array in (("train", slots), ("influence", values))
        }


def _sums(block: np.ndarray, axis: int) -> np.ndarray:
    """The sum of a block's entries, and that of their sizes, in float64."""
    entries = block.astype(np.float64)
    sum_of_entries = entries.sum(axis=axis)
    return np.stack([sum_of_entries, np.abs(entries, out=entries).sum(axis=axis)])
