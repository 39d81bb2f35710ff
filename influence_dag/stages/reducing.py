"""Blocks of perturbation influences, reduced on the device that computes them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.stages import naming
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.derivatives import Derivatives
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.workbench import Workbench
from influence_dag.study.groups import By

if TYPE_CHECKING:  # a plan reads none of it: what computes imports torch
    from torch import Tensor

    from influence_dag.influence.reductions import StrongestPairs

    Arrays = dict[str, Tensor]

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Reducing(Kernel):
    """Blocks of what is kept; `shapes` has the features of each input by variable."""

    method: str
    shapes: Shapes

    def at(self, bench: Workbench) -> Compute:
        of = Derivatives(bench, self.method)

        def compute(tile: Tile) -> "Arrays":
            arrays = self.empty(tile, of)
            for k, place in enumerate(range(tile.start[0], tile.stop[0])):
                one = {name: array[k] for name, array in arrays.items()}
                self.fill(one, of, tile.region[1:], place)
            return arrays

        return compute

    @abstractmethod
    def empty(self, tile: Tile, of: Derivatives) -> "Arrays":
        """What a tile is without any row that exists."""

    @abstractmethod
    def fill(
        self, arrays: "Arrays", of: Derivatives, region: tuple[slice, ...], place: int
    ) -> None:
        """Write what is there at one λ."""

    def cut(self, of: Derivatives, tests: slice, trains: slice) -> tuple[int, int]:
        numbers = sum(max(1, int(np.prod(shape))) for _, shape in self.shapes)
        return of.cut(tests, trains, numbers)


@dataclass(frozen=True)
class NumbersOfPairs(_Reducing):
    """One number of each pair of rows and input."""

    by: By

    def empty(self, tile: Tile, of: Derivatives) -> "Arrays":
        return {name: of.missing(*tile.shape) for name, _ in self.shapes}

    def fill(
        self, arrays: "Arrays", of: Derivatives, region: tuple[slice, ...], place: int
    ) -> None:
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
                at = test.start - tests.start + asked, train.start - trains.start + present
                for name, values in of.of(s, rows, train.start + present).items():
                    of.put(over_features(values, self.by), arrays[name], *at)


@dataclass(frozen=True)
class MapsOfRows(_Reducing):
    """One derivative of each training row and input, of all test rows together."""

    by: By

    def empty(self, tile: Tile, of: Derivatives) -> "Arrays":
        return {name: of.missing(*tile.shape, *shape) for name, shape in self.shapes}

    def fill(
        self, arrays: "Arrays", of: Derivatives, region: tuple[slice, ...], place: int
    ) -> None:
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
                of.put(values, arrays[name], train.start - trains.start + present)

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

    def empty(self, tile: Tile, of: Derivatives) -> "Arrays":
        import torch

        shape = (*tile.shape, self.rank)
        kept = {name: of.missing(*shape, *each) for name, each in self.shapes}
        return {**kept, naming.LONGEST_PAIRS: torch.full(shape, -1, device=of.bench.device)}

    def fill(
        self, arrays: "Arrays", of: Derivatives, region: tuple[slice, ...], place: int
    ) -> None:
        (tests,) = region
        few, many = self.cut(of, tests, slice(0, len(of.train)))
        for test in pieces(tests.start, tests.stop, few):
            asked, s = of.factors(test.start, test.stop, place)
            if not len(asked):
                continue
            found, at = self._longest(of, s, many), test.start - tests.start + asked
            of.put(found.slots, arrays[naming.LONGEST_PAIRS], at)
            for (name, _), values in zip(self.shapes, found.parts, strict=True):
                of.put(values, arrays[name], at)

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
