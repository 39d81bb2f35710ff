"""What is kept of perturbation influences where not all is: reduced while it is computed.

The tensor test × train × features is held a block at a time, on the device that computes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from influence_dag.errors import StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import naming, reducing
from influence_dag.stages.dampings import DampingAxis
from influence_dag.stages.derivatives import axes
from influence_dag.stages.driver import Part
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Variable
from influence_dag.study.groups import By, PerturbationSettings

Inputs = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # variable → feature dims and shape
_SMALLEST_ROW = 2**14  # bytes: chunks of rows are of a few hundred rows at most
_MANY = 16  # features from which more of them leave chunks of pairs as they are


@dataclass(frozen=True)
class Form(ABC):
    """A way to keep less than all, of one method's derivatives in some inputs.

    `labelled`: whether test rows, training rows and features are.
    """

    labelled: ClassVar[tuple[bool, bool, bool]] = True, True, True

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
        kind = {each.over: each for each in (_OverFeatures, _OverTests)}[asked.reduce.over]
        return kind(method, given, asked.reduce.by)

    @property
    def shapes(self) -> reducing.Shapes:
        return tuple((name, shape) for name, _, shape in self.inputs)

    @property
    def numbers(self) -> int:
        """Of a pair, over all inputs."""
        return sum(max(1, int(np.prod(shape))) for _, shape in self.shapes)

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What attributes and keys say of the form."""

    @abstractmethod
    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]: ...

    @abstractmethod
    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part: ...

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shapes)

    def _variable(
        self, bench: Workbench, name: str, about: dict[str, str], *axes: tuple[str, int, int]
    ) -> Variable:
        """`axes` are those after the axis of λ: name, length and chunk of each."""
        dtype, error = bench.settings.compute.dtype, bench.settings.store.max_relative_error
        axis = DampingAxis.of(bench, self.method)
        return axis.variable(name, *axes, dtype=dtype, about=about, max_relative_error=error)

    def _itemsize(self, bench: Workbench) -> int:
        return np.dtype(bench.settings.compute.dtype).itemsize


@dataclass(frozen=True)
class _Reduced(Form):
    over: ClassVar[Literal["feature", "test"]]

    by: By

    @property
    def about(self) -> dict[str, Any]:
        return {"reduce": {"over": self.over, "by": self.by}}

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

    over, labelled = "feature", (True, True, False)

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        test, train = axes(bench, self.method)
        pairs, itemsize = (len(test), len(train)), self._itemsize(bench)
        at, first = naming.perturbation(self.method), self._names()[0]
        chunks = bench.pair_chunks(at, first, pairs, itemsize, min(self.numbers, _MANY))
        said = self._words(words, "f", f"all features together, {self.by}: {words['long_name']}")
        cut = list(zip(("test", "train"), pairs, chunks, strict=True))
        return tuple(self._variable(bench, name, said, *cut) for name in self._names())

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        _, *chunks = variables[0].chunks
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, test.digests(chunks[0]), train.digests(chunks[1]))
        kernel = reducing.NumbersOfPairs(self.method, self.shapes, self.by)
        return Part(self._names(), keys, kernel, cell_bytes=self.numbers * self._itemsize(bench))


class _OverTests(_Reduced):
    """A map a training row, `train × features`: every test row that changes changes all of them."""

    over, labelled = "test", (False, True, True)

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        rows = len(axes(bench, self.method)[1])
        at, first = naming.perturbation(self.method), self._names()[0]
        row_bytes = self.numbers * self._itemsize(bench)
        chunk = bench.row_chunk(at, first, "train", rows, row_bytes=row_bytes)
        said = self._words(words, "test rows", f"all test rows, {self.by}: {words['long_name']}")
        return tuple(
            self._variable(bench, name, said, ("train", rows, chunk), *_whole(dims, shape))
            for name, dims, shape in self.inputs
        )

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        base = fingerprint(base, test.fingerprint)
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, train.digests(variables[0].chunks[1]))
        return Part(self._names(), keys, reducing.MapsOfRows(self.method, self.shapes, self.by))


@dataclass(frozen=True)
class _Pairs(Form):
    """The pairs with the longest derivatives, `test × rank × features`, and which they are of.

    A training row that changes may be anywhere in them: it changes all.
    """

    top: int

    @property
    def about(self) -> dict[str, Any]:
        return {"pairs": f"top-{self.top}"}

    def variables(self, bench: Workbench, words: dict[str, str]) -> tuple[Variable, ...]:
        test, train = axes(bench, self.method)
        if any("rank" in dims for _, dims, _ in self.inputs):
            raise StudyError(
                f"{bench.study.name}: 'rank' is the name of a feature axis, and of the axis of "
                "perturbation.pairs; choose another (data.features.dims, or in the file)"
            )
        rows, rank = len(test), min(self.top, train.count)
        at, first = naming.perturbation(self.method), self._names()[0]
        row_bytes = max(rank * self.numbers * self._itemsize(bench), _SMALLEST_ROW)
        chunk = bench.row_chunk(at, first, "test", rows, row_bytes=row_bytes)
        said = words | {"pairs": f"the {rank} longest (l2 over all features) of each test row"}
        pairs = ("test", rows, chunk), ("rank", rank, rank)
        kept = [
            self._variable(bench, name, said, *pairs, *_whole(dims, shape))
            for name, dims, shape in self.inputs
        ]
        told = {"long_name": "places on the train axis of the training rows, longest first"}
        axis = DampingAxis.of(bench, self.method)
        places = axis.variable(naming.LONGEST_PAIRS, *pairs, dtype="int64", about=told)
        return (*kept, places)

    def part(self, bench: Workbench, variables: tuple[Variable, ...], base: str) -> Part:
        test, train = axes(bench, self.method)
        base = fingerprint(base, train.fingerprint, train.keys)
        axis = DampingAxis.of(bench, self.method)
        keys = axis.keys(base, test.digests(variables[0].chunks[1]))
        kernel = reducing.LongestPairs(self.method, self.shapes, rank=variables[0].shape[2])
        return Part((*self._names(), naming.LONGEST_PAIRS), keys, kernel)


def _whole(dims: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """Axes of features, which are not cut."""
    return zip(dims, shape, (max(1, size) for size in shape), strict=True)
