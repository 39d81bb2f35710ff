"""Up-weighting influences `s_testᵀ ∇θ L(z_train)`: one product a block, streamed to the store."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import eigenbasis, methods, naming, reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.dampings import DampingAxis, of_method
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Layout

if TYPE_CHECKING:  # a plan reads none of it: what computes imports torch
    from torch import Tensor

FORMULA = FORMULAS["influences"]


def refresh(bench: Workbench, method: str) -> Update:
    """Compute the blocks `test × train` whose factors or gradients changed."""
    methods.check_factors(bench, method)
    methods.check_gradients(bench)
    test = bench.axis(naming.factors(method), "test")
    train = bench.axis(naming.GRADIENTS, "train")
    base, axis = base_key(bench, method), DampingAxis.of(bench, method)
    layout = _layout(bench, method, test, train, axis, base)
    _, *chunks = layout.variables[0].chunks
    keys = axis.keys(base, test.digests(chunks[0]), train.digests(chunks[1]))
    kernel = ProductsOfPairs(method, eigenbasis.has_eigenbasis(bench, method))
    part = Part(("influences",), keys, kernel)
    info = {"method": method, "test_rows": test.count, "train_rows": train.count}
    return refresh_blocks(bench, naming.influences(method), layout, [part], info=info)


def base_key(bench: Workbench, method: str) -> str:
    """Everything but the rows: the factors' key and the gradients'."""
    read = naming.factors(method), naming.GRADIENTS
    keys = (bench.require(name).attrs["base_key"] for name in read)
    return fingerprint("influences", FORMULA, *keys)


def _layout(
    bench: Workbench, method: str, test: Axis, train: Axis, axis: DampingAxis, base: str
) -> Layout:
    dtype = np.dtype(bench.settings.compute.dtype)
    chunks = bench.pair_chunks(
        naming.influences(method), "influences", (len(test), len(train)), dtype.itemsize
    )
    variable = axis.variable(
        "influences",
        *(("test", len(test), chunks[0]), ("train", len(train), chunks[1])),
        dtype=dtype.str,
        about=wording_of(bench, method).influences(),
        max_relative_error=bench.settings.store.max_relative_error,
    )
    attrs = methods.method_attributes(bench, method, base_key=base)
    labels = (*test.coordinates, *train.coordinates, axis.coordinate)
    return Layout((variable,), labels, attrs, provenance())


@dataclass(frozen=True)
class ProductsOfPairs(Kernel):
    """Tiles of `F Gᵀ`: factors of test rows times gradients of training rows.

    `rotates`: the method has an eigenbasis, in which its factors need not be written out; where
    they are many, test rows are differentiated anew instead.
    """

    method: str
    rotates: bool = False

    @property
    def runs_code(self) -> bool:
        return self.rotates

    def at(self, bench: Workbench) -> Compute:
        products = _Products(bench, self.method)
        if not self.rotates:
            return products
        return _LessMemory(bench, products)


class _Tiles(ABC):
    """Computes tiles piece by piece, holding no more of either side than a block."""

    def __init__(self, bench: Workbench, method: str):
        from influence_dag.gradients.memory import Recycled

        self.bench, self.method, self.memory = bench, method, Recycled()
        self.itemsize = np.dtype(bench.settings.compute.dtype).itemsize
        self.tests = self.trains = self.fitting(reading.gradient_layout_of(bench).numbers_per_row)

    def fitting(self, numbers: int) -> int:
        """How many rows of so many numbers are a block."""
        return max(1, self.bench.settings.compute.block_bytes // (numbers * self.itemsize))

    def __call__(self, tile: Tile) -> "dict[str, Tensor]":
        import torch

        places, tests, trains = tile.region
        like = torch.empty(0, dtype=self.bench.dtype, device=self.bench.device)
        block = self.memory.fresh(tile.shape, like)
        for train in pieces(trains.start, trains.stop, self.trains):
            columns = slice(train.start - trains.start, train.stop - trains.start)
            for k, place in enumerate(range(places.start, places.stop)):
                for test in pieces(tests.start, tests.stop, self.tests):
                    rows = slice(test.start - tests.start, test.stop - tests.start)
                    self.write(test, train, place, block[k, rows, columns])
        return {"influences": block}

    @abstractmethod
    def write(self, test: slice, train: slice, place: int, out: "Tensor") -> None:
        """The influences of a piece at one λ, the one at this place of the axis, into `out`."""


class _Products(_Tiles):
    """From the stored factors."""

    def __init__(self, bench: Workbench, method: str):
        super().__init__(bench, method)
        self.tests = self.fitting(bench.require("model").attrs["info"]["parameters"])
        self.factors = lru_cache(maxsize=1)(
            lambda start, stop, k: reading.load_factors(bench, method, slice(start, stop), k)
        )
        self.gradients = lru_cache(maxsize=1)(
            lambda start, stop: reading.load_gradients(bench, slice(start, stop))
        )

    def write(self, test: slice, train: slice, place: int, out: "Tensor") -> None:
        from influence_dag.influence import influences as influences_block

        factors = self.factors(test.start, test.stop, place)
        influences_block(factors, self.gradients(train.start, train.stop), out=out)


class _Rotated(_Tiles):
    """From pairs of both sides in the eigenbasis: no factor is read, or written out for long."""

    def __init__(self, bench: Workbench, method: str, test_rows: eigenbasis.GradientsOfTests):
        super().__init__(bench, method)
        self.dampings = of_method(bench, method)
        self.of_test = lru_cache(maxsize=1)(
            lambda start, stop: test_rows.gradients(slice(start, stop))
        )
        self.of_train = lru_cache(maxsize=1)(
            lambda start, stop: eigenbasis.rotated_rows(
                bench, test_rows.factorization, slice(start, stop)
            )
        )

    def write(self, test: slice, train: slice, place: int, out: "Tensor") -> None:
        import torch

        out.fill_(torch.nan)
        present, gradients = self.of_test(test.start, test.stop)
        if gradients is not None:
            rotated = self.of_train(train.start, train.stop)
            found = rotated.influences(gradients, damping=self.dampings[place])
            out[torch.from_numpy(present).to(out.device)] = found.to(out.dtype)


class _LessMemory:
    """In the eigenbasis where the factors of a tile's test rows are more than a block."""

    def __init__(self, bench: Workbench, products: _Products):
        self.bench, self.products = bench, products

    @cached_property
    def rotated(self) -> _Rotated | None:
        method = self.products.method
        test_rows = eigenbasis.GradientsOfTests.of(self.bench, method)
        return test_rows and _Rotated(self.bench, method, test_rows)

    def __call__(self, tile: Tile) -> "dict[str, Tensor]":
        many = tile.stop[-2] - tile.start[-2] > self.products.tests
        return ((many and self.rotated) or self.products)(tile)
