"""What is kept of perturbation influences where not all is: reduced while it is computed.

The tensor test × train × features is held a block at a time, on the device that computes it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.dampings import DAMPING, DampingAxis
from influence_dag.stages.derivatives import Derivatives, axes
from influence_dag.stages.driver import Part
from influence_dag.stages.tasks import Arrays, Compute, Kernel
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Variable
from influence_dag.study.groups import By, PerturbationSettings

if TYPE_CHECKING:  # a plan reads none of it: what computes imports torch
    from torch import Tensor

    from influence_dag.influence.reductions import StrongestPairs

TOP = "top_train"
Inputs = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # variable → feature dims and shape
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_SMALLEST_ROW = 2**14  # bytes: chunks of rows are of a few hundred rows at most
_MANY = 16  # features from which more of them leave chunks of pairs as they are


@dataclass(frozen=True)
class Form(ABC):
    """A way to keep less than all, of one method's derivatives in some inputs."""

    method: str
    inputs: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...]

    @staticmethod
    def asked(asked: PerturbationSettings, method: str, inputs: Inputs) -> "Form | None":
        """The form that a study asks for; None where it keeps everything."""
        given = tuple((name, *feature) for name, feature in inputs.items())
        if asked.top:
            return _Pairs(method, given, asked.top)
        if asked.reduce is None:
            return None
        kind = _OverFeatures if asked.reduce.over == "feature" else _OverTests
        return kind(method, given, asked.reduce.by)

    @property
    def shapes(self) -> Shapes:
        return tuple((name, shape) for name, _, shape in self.inputs)

    @property
    def numbers(self) -> int:
        """Of a pair, over all inputs."""
        return sum(max(1, int(np.prod(shape))) for _, shape in self.shapes)

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What attributes and keys say of the form."""

    @property
    @abstractmethod
    def labelled(self) -> tuple[bool, bool, bool]:
        """Whether test rows, training rows and features are labelled."""

    @abstractmethod
    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]: ...

    @abstractmethod
    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part: ...

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shapes)

    def _variable(self, bench: Workbench, name: str, *cut: Any) -> Variable:
        """`cut` is dims, shape and chunks after the axis of λ, then what is said of it."""
        dims, shape, chunks, about = cut
        lambdas = len(DampingAxis.of(bench, self.method))
        kept = (DAMPING, *dims), (lambdas, *shape), bench.settings.compute.dtype, (1, *chunks)
        error = bench.settings.store.max_relative_error
        return Variable(name, *kept, about, max_relative_error=error)

    def _itemsize(self, bench: Workbench) -> int:
        return np.dtype(bench.settings.compute.dtype).itemsize


@dataclass(frozen=True)
class _Reduced(Form):
    by: By

    def _words(self, words: dict[str, str], over: str, what: str) -> dict[str, str]:
        sign, formula = words["sign"], _FORMULAS[self.by].format(words["formula"], over=over)
        if self.by != "mean":
            sign = f"none: how much, not which way; before, {sign}"
        return words | {"formula": formula, "sign": sign, "long_name": what}


_FORMULAS = {
    "mean": "mean over {over} of {0}",
    "absmax": "max over {over} of |{0}|",
    "l2": "root of the sum over {over} of ({0})²",
}


class _OverFeatures(_Reduced):
    """A number a pair and input, `test × train`."""

    @property
    def about(self) -> dict[str, Any]:
        return {"reduce": {"over": "feature", "by": self.by}}

    @property
    def labelled(self) -> tuple[bool, bool, bool]:
        return True, True, False

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        test, train = axes(bench, self.method)
        pairs, itemsize = (len(test), len(train)), self._itemsize(bench)
        at, first = naming.perturbation(self.method), self._names()[0]
        chunks = bench.pair_chunks(at, first, pairs, itemsize, min(self.numbers, _MANY))
        said = self._words(words, "f", f"all features together, {self.by}: {words['long_name']}")
        cut = ("test", "train"), pairs, chunks, said
        return tuple(self._variable(bench, name, *cut) for name in self._names())

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        _, *chunks = variables[0].chunks
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, test.digests(chunks[0]), train.digests(chunks[1]))
        kernel = NumbersOfPairs(self.method, self.shapes, self.by)
        return Part(self._names(), keys, kernel, cell_bytes=self.numbers * self._itemsize(bench))


class _OverTests(_Reduced):
    """A map a training row, `train × features`: every test row that changes changes all of them."""

    @property
    def about(self) -> dict[str, Any]:
        return {"reduce": {"over": "test", "by": self.by}}

    @property
    def labelled(self) -> tuple[bool, bool, bool]:
        return False, True, True

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        rows = len(axes(bench, self.method)[1])
        at, first = naming.perturbation(self.method), self._names()[0]
        row_bytes = self.numbers * self._itemsize(bench)
        chunk = bench.row_chunk(at, first, "train", rows, row_bytes=row_bytes)
        said = self._words(words, "test rows", f"all test rows, {self.by}: {words['long_name']}")
        return tuple(
            self._variable(
                bench, name, ("train", *dims), (rows, *shape), (chunk, *_whole(shape)), said
            )
            for name, dims, shape in self.inputs
        )

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        base = fingerprint(base, test.fingerprint)
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, train.digests(variables[0].chunks[1]))
        return Part(self._names(), keys, MapsOfRows(self.method, self.shapes, self.by))


@dataclass(frozen=True)
class _Pairs(Form):
    """The pairs with the longest derivatives, `test × rank × features`, and which they are of.

    A training row that changes may be anywhere in them: it changes all.
    """

    top: int

    @property
    def about(self) -> dict[str, Any]:
        return {"pairs": f"top-{self.top}"}

    @property
    def labelled(self) -> tuple[bool, bool, bool]:
        return True, True, True

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        test, train = axes(bench, self.method)
        rows, rank = len(test), min(self.top, train.count)
        at, first = naming.perturbation(self.method), self._names()[0]
        row_bytes = max(rank * self.numbers * self._itemsize(bench), _SMALLEST_ROW)
        chunk = bench.row_chunk(at, first, "test", rows, row_bytes=row_bytes)
        said = words | {"pairs": f"the {rank} longest (l2 over all features) of each test row"}
        kept = [
            self._variable(
                bench,
                name,
                ("test", "rank", *dims),
                (rows, rank, *shape),
                (chunk, rank, *_whole(shape)),
                said,
            )
            for name, dims, shape in self.inputs
        ]
        told = {"long_name": "places on the train axis of the training rows, longest first"}
        axis = len(DampingAxis.of(bench, self.method))
        cut = (DAMPING, "test", "rank"), (axis, rows, rank), "int64", (1, chunk, rank)
        return (*kept, Variable(TOP, *cut, told))

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        base = fingerprint(base, train.fingerprint, train.keys)
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, test.digests(variables[0].chunks[1]))
        rank = variables[0].shape[2]
        return Part((*self._names(), TOP), keys, LongestPairs(self.method, self.shapes, rank))


def _whole(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(1, size) for size in shape)


@dataclass(frozen=True)
class _Reducing(Kernel):
    """Blocks of what is kept; `shapes` has the features of each input by variable."""

    method: str
    shapes: Shapes

    def at(self, bench: Workbench) -> Compute:
        of = Derivatives(bench, self.method)

        def compute(tile: Tile) -> Arrays:
            arrays = self.empty(tile, np.dtype(bench.settings.compute.dtype))
            for k, place in enumerate(range(tile.start[0], tile.stop[0])):
                one = {name: array[k] for name, array in arrays.items()}
                self.fill(one, of, tile.region[1:], place)
            return arrays

        return compute

    @abstractmethod
    def empty(self, tile: Tile, dtype: np.dtype) -> dict[str, np.ndarray]:
        """What a tile is without any row that exists."""

    @abstractmethod
    def fill(self, arrays: Arrays, of: Derivatives, region: tuple[slice, ...], place: int) -> None:
        """Write what is there at one λ."""

    def cut(self, of: Derivatives, tests: slice, trains: slice) -> tuple[int, int]:
        numbers = sum(max(1, int(np.prod(shape))) for _, shape in self.shapes)
        return of.cut(tests, trains, numbers)


@dataclass(frozen=True)
class NumbersOfPairs(_Reducing):
    """One number of each pair of rows and input."""

    by: By

    def empty(self, tile: Tile, dtype: np.dtype) -> dict[str, np.ndarray]:
        return {name: np.full(tile.shape, np.nan, dtype) for name, _ in self.shapes}

    def fill(self, arrays: Arrays, of: Derivatives, region: tuple[slice, ...], place: int) -> None:
        from influence_dag.influence.reductions import over_features

        tests, trains = region
        few, many = self.cut(of, tests, trains)
        for train in pieces(trains.start, trains.stop, many):
            present, rows = of.rows(train)
            if rows is None:
                continue
            for test in pieces(tests.start, tests.stop, few):
                asked, s = of.factors(test.start, test.stop, place)
                if not len(asked):
                    continue
                at = np.ix_(test.start - tests.start + asked, train.start - trains.start + present)
                for name, values in of.of(s, rows, train.start + present).items():
                    arrays[name][at] = over_features(values, self.by).cpu().numpy()


@dataclass(frozen=True)
class MapsOfRows(_Reducing):
    """One derivative of each training row and input, of all test rows together."""

    by: By

    def empty(self, tile: Tile, dtype: np.dtype) -> dict[str, np.ndarray]:
        return {name: np.full((*tile.shape, *shape), np.nan, dtype) for name, shape in self.shapes}

    def fill(self, arrays: Arrays, of: Derivatives, region: tuple[slice, ...], place: int) -> None:
        (trains,) = region
        few, many = self.cut(of, slice(0, len(of.test)), trains)
        for train in pieces(trains.start, trains.stop, many):
            present, rows = of.rows(train)
            if rows is None or not of.test.count:
                continue
            if self.by == "mean":
                found = of.of(_mean_factor(of, place), rows, train.start + present)
                found = {name: values[0] for name, values in found.items()}
            else:
                found = self._over_tests(of, rows, train.start + present, place, few)
            for name, values in found.items():
                arrays[name][train.start - trains.start + present] = values.cpu().numpy()

    def _over_tests(
        self, of: Derivatives, rows: Any, slots: np.ndarray, place: int, few: int
    ) -> "dict[str, Tensor]":
        from influence_dag.influence.reductions import OverTests

        assert self.by != "mean"
        kept: dict[str, OverTests] = {name: OverTests(self.by) for name, _ in self.shapes}
        for test in pieces(0, len(of.test), few):
            asked, s = of.factors(test.start, test.stop, place)
            if len(asked):
                for name, values in of.of(s, rows, slots).items():
                    kept[name].add(values)
        return {name: each.result() for name, each in kept.items()}


def _mean_factor(of: Derivatives, place: int) -> "Tensor":
    """The derivative is linear in the factor: the mean of all is that of their mean, `(1, p)`."""
    import torch

    def mean() -> "Tensor":
        total = torch.zeros(of.objective.size, dtype=torch.float64, device=of.bench.device)
        for test in pieces(0, len(of.test), of.tests):
            _, s = of.factors(test.start, test.stop, place)
            total += s.sum(dim=0, dtype=torch.float64)
        return (total / of.test.count).to(of.bench.dtype).unsqueeze(0)

    return of.bench.once(("mean factor", of.method, place), mean)


@dataclass(frozen=True)
class LongestPairs(_Reducing):
    """Of each test row, the derivatives of the pairs where they are longest, and the slots."""

    rank: int

    def empty(self, tile: Tile, dtype: np.dtype) -> dict[str, np.ndarray]:
        shape = (*tile.shape, self.rank)
        kept = {name: np.full((*shape, *each), np.nan, dtype) for name, each in self.shapes}
        return {**kept, TOP: np.full(shape, -1, np.int64)}

    def fill(self, arrays: Arrays, of: Derivatives, region: tuple[slice, ...], place: int) -> None:
        (tests,) = region
        few, many = self.cut(of, tests, slice(0, len(of.train)))
        for test in pieces(tests.start, tests.stop, few):
            asked, s = of.factors(test.start, test.stop, place)
            if not len(asked):
                continue
            found, at = self._longest(of, s, many), test.start - tests.start + asked
            arrays[TOP][at] = found.slots.cpu().numpy()
            for (name, _), values in zip(self.shapes, found.parts, strict=True):
                arrays[name][at] = values.cpu().numpy()

    def _longest(self, of: Derivatives, s: "Tensor", many: int) -> "StrongestPairs":
        import torch

        from influence_dag.influence.reductions import StrongestPairs

        kept = StrongestPairs(self.rank)
        for train in pieces(0, len(of.train), many):
            present, rows = of.rows(train)
            if rows is None:
                continue
            slots = train.start + present
            found = of.of(s, rows, slots)
            places = torch.from_numpy(slots).to(s.device)
            kept.add([found[name] for name, _ in self.shapes], places)
        return kept
