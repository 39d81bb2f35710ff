"""Up-weighting influences `s_testᵀ ∇θ L(z_train)`: one product a block, streamed to the store."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint, grid_keys
from influence_dag.influence.upweighting import influences as influences_block
from influence_dag.stages import methods, naming, reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.dampings import damping_axis, damping_digests
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Layout, Variable
from influence_dag.store.layout import pair_chunks

FORMULA = FORMULAS["influences"]


def refresh(bench: Workbench, method: str) -> Update:
    """Compute the blocks `test × train` whose factors or gradients changed."""
    test, train = (
        bench.axis(naming.factors(method), "test"),
        bench.axis(naming.GRADIENTS, "train"),
    )
    base = base_key(bench, method)
    layout = _layout(bench, method, test, train, base)
    chunks = layout.variables[0].chunks
    keys = grid_keys(
        base, *damping_digests(bench), test.digests(chunks[-2]), train.digests(chunks[-1])
    )
    part = Part(("influences",), keys, ProductsOfPairs(method))
    info = {"method": method, "test_rows": test.count, "train_rows": train.count}
    return refresh_blocks(bench, naming.influences(method), layout, [part], info=info)


def base_key(bench: Workbench, method: str) -> str:
    """Everything but the rows: the factors' key and the gradients'."""
    keys = (bench.require(name).attrs["base_key"] for name in _reads(method))
    return fingerprint("influences", FORMULA, *keys)


def _reads(method: str) -> tuple[str, str]:
    return naming.factors(method), naming.GRADIENTS


def _layout(bench: Workbench, method: str, test: Axis, train: Axis, base: str) -> Layout:
    dtype = np.dtype(bench.settings.compute.dtype)
    dims, sizes, coordinates = damping_axis(bench, method)
    override = bench.chunk_override
    ideal = pair_chunks(len(test), len(train), itemsize=dtype.itemsize, override=override)
    if not override:
        ideal = bench.stable_chunks(
            naming.influences(method), "influences", (*(1 for _ in sizes), *ideal)
        )[-2:]
    variable = Variable(
        "influences",
        (*dims, "test", "train"),
        (*sizes, len(test), len(train)),
        dtype.str,
        (*(1 for _ in sizes), *ideal),
        wording_of(bench, method).influences(),
        max_relative_error=bench.settings.store.max_relative_error,
    )
    attrs = methods.method_attributes(bench, method, base_key=base)
    return Layout(
        (variable,), (*test.coordinates, *train.coordinates, *coordinates), attrs, provenance()
    )


@dataclass(frozen=True)
class ProductsOfPairs(Kernel):
    """Tiles of `F Gᵀ`: factors of test rows times gradients of training rows."""

    method: str

    @property
    def runs_code(self) -> bool:
        return False

    def at(self, bench: Workbench) -> Compute:
        return _Product(bench, self.method)


class _Product:
    """Computes tiles of `F Gᵀ`, holding no more of F or G than a block."""

    def __init__(self, bench: Workbench, method: str):
        self.bench = bench
        info = bench.require("model").attrs["info"]
        itemsize = np.dtype(bench.settings.compute.dtype).itemsize
        self.rows = max(1, bench.settings.compute.block_bytes // (info["parameters"] * itemsize))
        self.factors = lru_cache(maxsize=1)(
            lambda start, stop, k: reading.load_factors(bench, method, slice(start, stop), k)
        )
        self.gradients = lru_cache(maxsize=1)(
            lambda start, stop: reading.load_gradients(bench, slice(start, stop))
        )

    def __call__(self, tile: Tile) -> dict[str, np.ndarray]:
        *lead, tests, trains = (range(a, b) for a, b in zip(tile.start, tile.stop, strict=True))
        shape = tuple(len(axis) for axis in (*lead, tests, trains))
        block = np.empty(shape, np.dtype(self.bench.settings.compute.dtype))
        flat = block.reshape(-1, *shape[-2:])
        for train in pieces(trains.start, trains.stop, self.rows):
            G = self.gradients(train.start, train.stop)
            for k, damping in enumerate(lead[0] if lead else [None]):
                for test in pieces(tests.start, tests.stop, self.rows):
                    values = influences_block(self.factors(test.start, test.stop, damping), G)
                    at = slice(test.start - tests.start, test.stop - tests.start)
                    flat[k, at, train.start - trains.start : train.stop - trains.start] = (
                        values.cpu().numpy()
                    )
        return {"influences": block}
