"""Self-influences of training rows: what a solve of each row's own gradient says of it."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import dampings, eigenbasis, methods, naming, reading
from influence_dag.stages.blocks import Tile, pieces
from influence_dag.stages.row_changes import rows_of_both
from influence_dag.stages.tasks import Arrays
from influence_dag.stages.workbench import Workbench

if TYPE_CHECKING:
    import torch

    from influence_dag.influence.own_influences import OwnInfluences
    from influence_dag.solvers import Factorization

NAMES = ("self_influence", "parameter_influence_norm")


class OwnSolves:
    """`∇L(z_i)ᵀ (H + λI)⁻¹ ∇L(z_i)` and `‖(H + λI)⁻¹ ∇L(z_i)‖` of each training row.

    Of rows that the stored gradients do not have (they may be of another age than the influences)
    nothing is said: NaN, and their keys are those of holes. NaN also of a row whose solve missed
    its tolerance (`on_failure: warn`): nothing beside it would say so. Rows of a `chunk` are solved
    for together, whatever else a tile has: its bits depend on nothing but its rows.
    """

    def __init__(self, bench: Workbench, method: str, train: Axis, *, chunk: int):
        self.bench, self.method, self.chunk = bench, method, chunk
        self.rows = rows_of_both(train, bench.axis(naming.GRADIENTS, "train"))
        self.weighted = bench.require("dataset").attrs.get("weights", "none") != "none"
        if self.weighted:  # of rows that the dataset has otherwise no weight is known
            self.rows = rows_of_both(self.rows, bench.axis("dataset", "train"))
        gradients_key = bench.require(naming.GRADIENTS).attrs["base_key"]
        asked = bench.settings.methods[method]
        warns = asked.is_iterative and getattr(asked, "on_failure", "raise") == "warn"
        self.key = fingerprint(methods.factors_key(bench, method), gradients_key, warns)
        size = bench.require("model").attrs["info"]["parameters"]
        if eigenbasis.has_eigenbasis(bench, method):
            size = reading.gradient_layout_of(bench).numbers_per_row
        self.at_once = max(1, bench.settings.compute.block_bytes // (8 * size))

    @cached_property
    def factorization(self) -> "Factorization":
        return methods.load_factorization(self.bench, self.method)

    @cached_property
    def _by_cholesky(self) -> "OwnInfluences | None":
        from influence_dag.influence.own_influences import OwnInfluences
        from influence_dag.solvers.direct import CholeskyFactor

        factor = self.factorization
        return OwnInfluences(factor) if isinstance(factor, CholeskyFactor) else None

    def __call__(self, tile: Tile) -> Arrays:
        from influence_dag.objective.objective import flushed_denormals

        with flushed_denormals():
            return self._of_rows(tile)

    def _of_rows(self, tile: Tile) -> Arrays:
        import torch

        start, stop = tile.start[-1], tile.stop[-1]
        values = np.full((len(NAMES), *tile.shape), np.nan)
        for slots in self._pieces(start, stop):
            present = np.flatnonzero(self.rows.valid[slots])
            if not len(present):
                continue
            solved = self._solved(slots, present)
            for k, place in places(tile):
                own, lengths = solved(dampings.of_method(self.bench, self.method)[place])
                own = own / self._weights(slots.start + present, own)
                found = torch.stack([own, lengths]).cpu().numpy()
                values[:, k, slots.start - start + present] = found
        return dict(zip(NAMES, values, strict=True))

    def _pieces(self, start: int, stop: int) -> Iterator[slice]:
        for chunk in pieces(start, stop, self.chunk):
            yield from pieces(chunk.start, chunk.stop, self.at_once)

    def _solved(
        self, slots: slice, present: np.ndarray
    ) -> "Callable[[float], tuple[torch.Tensor, torch.Tensor]]":
        """Both numbers of some rows at a λ: from pairs where the method has an eigenbasis.

        Sums are float64, of rows over a power of 2 each: squares of the gradients of rows that a
        model is sure of are beyond the range of float32.
        """
        from torch.linalg import vecdot

        from influence_dag.solvers.base import of_unit_size
        from influence_dag.solvers.ekfac import KroneckerFactorization

        if isinstance(factorization := self.factorization, KroneckerFactorization):
            rotated = eigenbasis.rotated_rows(self.bench, factorization, slots, present)
            return lambda damping: rotated.own_influences(damping=damping)
        G = reading.load_gradients(self.bench, slots).dense()
        G = G if len(G) == len(present) else G[present]
        if by_cholesky := self._by_cholesky:
            return lambda damping: by_cholesky(G, damping=damping)
        ids = self.rows.ids[slots][present]
        g, units = of_unit_size(G)

        def solved(damping: float) -> "tuple[torch.Tensor, torch.Tensor]":
            with reading.named_rows(ids, f"{self.method}, training rows"):
                solution = factorization.solve(g, damping=damping)
            x, unit = solution.x.double(), units.double().squeeze(1)
            own, lengths = vecdot(x, g.double()) * unit.square(), x.norm(dim=1) * unit
            if (met := solution.info.get("converged")) is not None:
                own[~met] = lengths[~met] = np.nan
            return own, lengths

        return solved

    def _weights(self, slots: np.ndarray, like: "torch.Tensor") -> "torch.Tensor":
        """Stored gradients have them as a factor, which counts once in a self-influence.

        1 for rows of weight 0, whose gradients are 0.
        """
        if not self.weighted:
            return like.new_ones(len(slots))
        import torch

        weights = self.bench.require("dataset").read("train_weight")[slots]
        return torch.from_numpy(np.where(weights == 0, 1.0, weights)).to(like)


def places(tile: Tile) -> Iterator[tuple[int, int]]:
    """Each λ of a tile: its position in the tile and its place of the axis."""
    return enumerate(range(tile.start[0], tile.stop[0]))
