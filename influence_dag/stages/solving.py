"""Solves for runs of test rows: what each block of influence factors is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.stages import dampings, methods, naming, sampling
from influence_dag.stages.blocks import Tile
from influence_dag.stages.reading import check_rows, load_objective, load_rows, named_rows
from influence_dag.stages.tasks import Compute, Kernel
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

if TYPE_CHECKING:  # a plan solves nothing: what computes imports torch
    import torch

    from influence_dag.curvature import Curvature
    from influence_dag.gradients import Gradients
    from influence_dag.objective import Objective
    from influence_dag.solvers import Factorization

CURVE = 48  # iterations at which residuals are kept


def curve_steps(bench: Workbench, method: str, parameters: int) -> np.ndarray:
    """The iterations whose residual is kept: some tens, on a logarithmic scale up to the limit."""
    longest = getattr(bench.settings.methods[method], "maxiter", None) or 10 * parameters
    return np.unique(np.geomspace(1, longest, CURVE).astype(np.int64))


def _curves(info: "Mapping[str, torch.Tensor]", steps: np.ndarray) -> "torch.Tensor":
    import torch

    from influence_dag.solvers.base import carried_on

    history, last = info["residual_history"], info["residual"][:, None]
    history = carried_on(history, history.shape[1])
    known = steps[steps <= history.shape[1]]
    sampled = history[:, torch.from_numpy(known - 1).to(history.device)]
    rest = last.expand(-1, len(steps) - len(known))
    return torch.where(info["niter"][:, None] > 0, torch.cat([sampled, rest], dim=1), last)


@dataclass(frozen=True)
class SolvesOfRows(Kernel):
    """Solutions for a run of test rows, and what is said of each: the arrays `names`."""

    method: str
    names: tuple[str, ...]

    def at(self, bench: Workbench) -> Compute:
        return _Solver(bench, self.method, bench.axis("dataset", "test"), self.names)


class _Solver:
    """Computes tiles; model and factorisation are loaded when the first one is asked for."""

    def __init__(self, bench: Workbench, method: str, test: Axis, names: tuple[str, ...]):
        self.bench, self.method, self.test, self.names = bench, method, test, names

    def __call__(self, tile: Tile) -> dict[str, np.ndarray]:
        places, slots = tile.region
        known = list(enumerate(dampings.of_method(self.bench, self.method)))
        blocks = [self._solve(slots, k, damping) for k, damping in known[places]]
        return {name: np.stack([block[name] for block in blocks]) for name in self.names}

    @cached_property
    def _objective(self) -> "Objective":
        return load_objective(self.bench)

    @cached_property
    def _factorization(self) -> "Factorization":
        return methods.load_factorization(self.bench, self.method)

    @cached_property
    def _operator(self) -> "Curvature":
        version = self.bench.require(naming.curvature(self.method))
        return methods.load_operator(self.bench, self.method, version)

    @cached_property
    def _sample(self) -> sampling.Sample:
        return sampling.of_method(self.bench, self.method)

    @cached_property
    def _stored(self) -> Version | None:
        """The factors of the refresh before, where a solve can start from some."""
        iterative = self.bench.settings.methods[self.method].is_iterative
        return self.bench.undamaged(naming.factors(self.method)) if iterative else None

    @cached_property
    def _blocks(self) -> tuple[str, ...]:
        return methods.block_names(self.bench, self.method)

    def _previous(self, slots: np.ndarray, place: int, size: int) -> "torch.Tensor | None":
        """Stored factors of the same slots, from which an iterative solve starts; zero elsewhere.

        After a small change of the data they are close to the answer. They decide how many
        iterations it takes, not what comes out.
        """
        import torch

        stored = self._stored
        known = dampings.of_method(self.bench, self.method)
        told = wording_of(self.bench, self.method).damping(self._blocks, known)
        if stored is None or stored.attrs["damping"] != told:
            return None
        run = slice(int(slots[0]), int(slots[-1]) + 1)
        values = dampings.at(stored, "influence_factors", place, run)
        start = torch.zeros(len(slots), size, dtype=self.bench.dtype)
        there = np.flatnonzero(slots - run.start < len(values))
        if values.shape[1] == size and len(there):
            rows = torch.from_numpy(values[slots[there] - run.start])
            start[torch.from_numpy(there)] = rows.nan_to_num().to(self.bench.dtype)
        return start.to(self.bench.device)

    def _solve(self, slots: slice, place: int, damping: float) -> dict[str, np.ndarray]:
        from influence_dag.gradients import per_sample_gradients
        from influence_dag.objective.objective import without_denormal_entries

        objective = self._objective
        present = np.flatnonzero(self.test.valid[slots])
        count = slots.stop - slots.start
        dtype = np.dtype(self.bench.settings.compute.dtype)
        block: dict[str, np.ndarray] = {
            name: np.full(count, np.nan, np.float32) for name in self.names
        }
        block["influence_factors"] = np.full((count, objective.size), np.nan, dtype)
        steps = curve_steps(self.bench, self.method, objective.size)
        if "residual_history" in block:
            block["residual_history"] = np.full((count, len(steps)), np.nan, np.float32)
        if not len(present):
            return block
        rows = load_rows(self.bench, self.test, slots.start + present)
        check_rows(objective, rows, self.test, slots.start + present, of="measurement")
        gradients = per_sample_gradients(objective, rows, of="measurement")
        x0 = self._previous(slots.start + present, place, objective.size)
        on = self._factorization_for(slots.start + present, damping)
        with named_rows(self.test.ids[slots.start + present], f"{self.method}, test rows"):
            x, info = self._solved(on, gradients, damping, x0)
        without_denormal_entries(x)
        if "residual" not in info:
            keys = self.test.keys[slots.start + present]
            info["residual"] = self._residuals(gradients, x, damping, self._sample.rows(keys))
        block["influence_factors"][present] = x.cpu().numpy()
        for name in self.names[1:]:
            values = _curves(info, steps) if name == "residual_history" else info[name]
            block[name][present] = values.float().cpu().numpy()
        return block

    def _factorization_for(self, slots: np.ndarray, damping: float) -> "Factorization":
        """On the matrix where the products of an iterative method would cost more than it does.

        Rows whose factors are stored as they will be take none.
        """
        if not self.bench.settings.methods[self.method].is_iterative:
            return self._factorization
        from influence_dag.solvers.forming import worth_forming

        solver, rows = methods.build_method(self.bench, self.method), len(slots)
        stored = self._stored
        if stored is not None and stored.attrs["base_key"] == self._base_key:
            there = slots[slots < len(seen := self.bench.axis_of(stored, "test").keys)]
            rows -= int((seen[there] == self.test.keys[there]).sum())
        size = self._objective.size
        worth = worth_forming(solver, size=size, rows=rows, damping=damping)
        return self._on_matrix if worth else self._factorization

    @cached_property
    def _base_key(self) -> str:
        return methods.factors_key(self.bench, self.method)

    @cached_property
    def _on_matrix(self) -> "Factorization":
        matrix = methods.formed(self._operator)
        return methods.load_factorization(self.bench, self.method, matrix)

    def _solved(
        self,
        factorization: "Factorization",
        gradients: "Gradients",
        damping: float,
        x0: "torch.Tensor | None",
    ) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
        """The solution for each row, and what the method says of it."""
        from influence_dag.objective.objective import flushed_denormals
        from influence_dag.solvers.ekfac import KroneckerFactorization
        from influence_dag.solvers.kronecker_scores import RotatedGradients

        with flushed_denormals():
            if isinstance(factorization, KroneckerFactorization):
                rotated = RotatedGradients.of(factorization, gradients)
                return rotated.solved(damping=damping), {}
            solution = factorization.solve(gradients.dense(), damping=damping, x0=x0)
            return solution.x, dict(solution.info)

    def _residuals(
        self, gradients: "Gradients", x: "torch.Tensor", damping: float, sample: np.ndarray
    ) -> "torch.Tensor":
        """Relative residuals of the rows in the sample, NaN of others.

        On blocks the residual is that of the system without what couples them, and with the
        blocks' own dampings.
        """
        import torch

        from influence_dag.curvature.batched import BatchedCurvature
        from influence_dag.solvers.base import residuals
        from influence_dag.solvers.blocks import BlockFactorization

        bench, method = self.bench, self.method
        found = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
        if not len(sample):
            return found
        index, operator = torch.from_numpy(sample).to(x.device), self._operator
        once = len(x) == self.test.count and len(list(dampings.of_method(bench, method))) == 1
        if once and isinstance(operator, BatchedCurvature):
            operator = operator.for_one_product()  # no other block will ask
        s, b = (part.to(operator.dtype) for part in (x[index], gradients[index].dense()))
        if isinstance(factorization := self._factorization, BlockFactorization):
            known = factorization.residuals(operator, s, b, damping)
        else:
            known = residuals(operator, s, b, damping=damping)
        found[index] = known.to(found)
        return found
