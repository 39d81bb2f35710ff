"""Derivatives of influences in the training inputs, `∂/∂x (s_testᵀ ∇θ L(x, y))`, pair by pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError
from influence_dag.stages import naming, reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.reading import load_rows, shared_objective
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Variable

if TYPE_CHECKING:  # a plan reads none of it: what computes imports torch
    from torch import Tensor

    from influence_dag.objective import Rows

_FEWEST = 32  # training rows differentiated together: their graph serves a block of factors


def axes(bench: Workbench, method: str) -> tuple[Axis, Axis]:
    return bench.axis(naming.factors(method), "test"), bench.axis("dataset", "train")


def point(bench: Workbench) -> str | None:
    """The module in whose output the derivative is; None: in the inputs."""
    asked = bench.settings.perturbation
    return asked and asked.wrt


@dataclass(frozen=True)
class DerivativesOfPairs(Kernel):
    """Blocks of one variable: of each pair of rows, a derivative of shape `feature`."""

    method: str
    variable: str
    feature: tuple[int, ...]

    @classmethod
    def of(cls, method: str, variable: Variable) -> "DerivativesOfPairs":
        _, _, _, *feature = variable.shape
        return cls(method, variable.name, tuple(feature))

    def at(self, bench: Workbench) -> Compute:
        return _Whole(Derivatives(bench, self.method), self)


class Derivatives:
    """The derivatives of a method's pairs, on the study's device."""

    def __init__(self, bench: Workbench, method: str):
        self.bench, self.method, self.wrt = bench, method, point(bench)
        self.test, self.train = axes(bench, method)
        self.objective = shared_objective(bench)
        self.itemsize = np.dtype(bench.settings.compute.dtype).itemsize
        row_bytes = self.objective.size * self.itemsize
        self.tests = max(1, bench.settings.compute.block_bytes // row_bytes)  # factors in a block
        self.factors = lru_cache(maxsize=1)(self._factors)

    def _factors(self, start: int, stop: int, place: int) -> "tuple[np.ndarray, Tensor]":
        """Places of the test rows that exist in a run of slots, and their factors at one λ."""
        asked = np.flatnonzero(self.test.valid[start:stop])
        s = reading.load_factors(self.bench, self.method, slice(start, stop), place)
        return asked, s if len(asked) == len(s) else s[asked]

    def rows(self, trains: slice) -> "tuple[np.ndarray, Rows | None]":
        """Places of the training rows that exist in a run of slots, and the rows."""
        present = np.flatnonzero(self.train.valid[trains])
        if not len(present):
            return present, None
        return present, load_rows(self.bench, self.train, trains.start + present)

    def of(self, s: "Tensor", rows: "Rows", slots: np.ndarray) -> "dict[str, Tensor]":
        """By variable, of every pair of a factor and a row: `(k, n, *features)`."""
        from influence_dag.influence.perturbation import perturbation_influences

        with self._named(slots):
            values = perturbation_influences(self.objective, s, rows, wrt=self.wrt)
        if isinstance(values, dict):
            return {f"{naming.PERTURBATIONS}_{name}": each for name, each in values.items()}
        return {naming.PERTURBATIONS: values}

    def cut(self, tests: slice, trains: slice, numbers: int) -> tuple[int, int]:
        """Into how many test and training rows to cut, so that pairs of `numbers` are a block."""
        pairs = max(1, self.bench.settings.compute.block_bytes // (numbers * self.itemsize))
        fewest = min(_FEWEST, max(1, trains.stop - trains.start))
        few = max(1, min(self.tests, tests.stop - tests.start, pairs // fewest))
        return few, max(1, pairs // few)

    def missing(self, *shape: int) -> "Tensor":
        """NaN, where nothing has been computed yet, on the study's device."""
        import torch

        return torch.full(shape, torch.nan, dtype=self.bench.dtype, device=self.bench.device)

    def put(self, found: "Tensor", into: "Tensor", *places: np.ndarray) -> None:
        """Write where places on one axis meet those on the next."""
        import torch

        at = tuple(torch.from_numpy(each).to(into.device) for each in np.ix_(*places))
        into[at] = found.to(into.dtype)

    @contextmanager
    def _named(self, slots: np.ndarray) -> Iterator[None]:
        """What is said of a training row inside is said with its id."""
        try:
            yield
        except ModelError as error:
            if error.row is None:
                raise
            row = repr(str(self.train.ids[slots[error.row]]))
            said = str(error).replace(f"training row {error.row} ", f"training row {row} ")
            raise ModelError(
                f"{naming.perturbation(self.method)}: {said}", row=error.row
            ) from error


class _Whole:
    """Computes tiles of one variable; NaN where a row is missing."""

    def __init__(self, derivatives: Derivatives, kernel: DerivativesOfPairs):
        self.derivatives, self.kernel = derivatives, kernel

    def __call__(self, tile: Tile) -> "dict[str, Tensor]":
        import torch

        places, tests, trains = tile.region
        blocks = [self._one(tests, trains, k) for k in range(places.start, places.stop)]
        return {self.kernel.variable: blocks[0][None] if len(blocks) == 1 else torch.stack(blocks)}

    def _one(self, tests: slice, trains: slice, place: int) -> "Tensor":
        of, shape = self.derivatives, (tests.stop - tests.start, trains.stop - trains.start)
        present, rows = of.rows(trains)
        block = None
        for test in pieces(tests.start, tests.stop, of.tests):
            asked, s = of.factors(test.start, test.stop, place)
            if rows is not None and len(asked):
                found = of.of(s, rows, trains.start + present)[self.kernel.variable]
                if found.shape[:2] == shape:
                    return found
                block = of.missing(*shape, *self.kernel.feature) if block is None else block
                of.put(found, block, test.start - tests.start + asked, present)
        return of.missing(*shape, *self.kernel.feature) if block is None else block
