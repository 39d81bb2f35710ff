"""Influence factors `(H + λI)⁻¹ ∇θ L(z_test)`, one row a test row."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.stages import dampings, methods, naming, sampling
from influence_dag.stages.blocks import Tile
from influence_dag.stages.dampings import DAMPING, DampingAxis
from influence_dag.stages.driver import Part, refresh_blocks
from influence_dag.stages.methods import method_attributes
from influence_dag.stages.reading import check_rows, load_objective, load_rows, named_rows
from influence_dag.stages.tasks import Arrays, Compute, Kernel
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import wording_of
from influence_dag.stages.workbench import Workbench, provenance
from influence_dag.store import Coordinate, Layout, Variable, Version

if TYPE_CHECKING:  # a plan solves nothing: what computes imports torch
    import torch

    from influence_dag.curvature import Curvature
    from influence_dag.gradients import Gradients
    from influence_dag.objective import Objective
    from influence_dag.solvers import Factorization

CURVE = 48  # iterations at which residuals are kept
PER_ROW = {"niter": "iterations", "converged": "1 where the tolerance was met"}


def refresh(bench: Workbench, method: str) -> Update:
    """Solve for the test rows whose block is not stored under its key."""
    test, axis = bench.axis("dataset", "test"), DampingAxis.of(bench, method)
    size = bench.require("model").attrs["info"]["parameters"]
    base = methods.factors_key(bench, method)
    layout = _layout(bench, method, test, axis, size, base)
    names = tuple(variable.name for variable in layout.variables)
    keys = axis.keys(base, test.digests(layout.variables[0].chunks[-2]))

    def tell(tile: Tile, arrays: Arrays) -> None:
        for said in _late(method, test, tile, arrays):
            bench.report(said)

    part = Part(names, keys, SolvesOfRows(method, names), tell=tell)
    info = _info(bench, method, test)
    return refresh_blocks(bench, naming.factors(method), layout, [part], info=info)


def _layout(
    bench: Workbench, method: str, test: Axis, axis: DampingAxis, size: int, base: str
) -> Layout:
    dtype, words = np.dtype(bench.settings.compute.dtype), wording_of(bench, method)
    name = naming.factors(method)
    chunk = bench.row_chunk(
        name, "influence_factors", "test", len(test), row_bytes=size * dtype.itemsize
    )
    dims, shape, chunks = (DAMPING, "test"), (len(axis), len(test)), (1, chunk)
    factors = Variable(
        "influence_factors",
        (*dims, "param"),
        (*shape, size),
        dtype.str,
        (*chunks, size),
        words.factors(),
    )
    iterative = bench.settings.methods[method].is_iterative
    said = {"residual": words.residual(), **PER_ROW}
    sampled = sampling.of_method(bench, method).attributes
    per_row = tuple(
        Variable(
            info,
            dims,
            shape,
            "float32",
            chunks,
            {"long_name": said[info], **(sampled if info == "residual" else {})},
            coordinate=True,
        )
        for info in ("residual", *(("niter", "converged") if iterative else ()))
    )
    coordinates: tuple[Coordinate, ...] = (*test.coordinates, axis.coordinate)
    if iterative:
        steps = curve_steps(bench, method, size)
        per_row += (_curve(dims, shape, chunks, len(steps)),)
        about = {"long_name": "iteration, on a logarithmic scale"}
        coordinates += (Coordinate("iteration", ("iteration",), steps, about),)
    attrs = method_attributes(bench, method, base_key=base)
    known = {"settings": bench.settings.model_dump(mode="json"), "project": str(bench.study.root)}
    made = {**provenance(), "study_settings": json.dumps(known)}
    return Layout((factors, *per_row), coordinates, attrs, made)


def curve_steps(bench: Workbench, method: str, parameters: int) -> np.ndarray:
    """The iterations whose residual is kept: some tens, on a logarithmic scale up to the limit."""
    longest = getattr(bench.settings.methods[method], "maxiter", None) or 10 * parameters
    return np.unique(np.geomspace(1, longest, CURVE).astype(np.int64))


def _curve(dims, sizes, chunks, steps: int) -> Variable:
    about = {"long_name": "relative residual by iteration; from where the row stopped, its last"}
    return Variable(
        "residual_history",
        (*dims, "iteration"),
        (*sizes, steps),
        "float32",
        (*chunks, steps),
        about,
        coordinate=True,
    )


def _curves(info: "Mapping[str, torch.Tensor]", steps: np.ndarray) -> "torch.Tensor":
    import torch

    from influence_dag.solvers.base import carried_on

    history, last = info["residual_history"], info["residual"][:, None]
    history = carried_on(history, history.shape[1])
    known = steps[steps <= history.shape[1]]
    sampled = history[:, torch.from_numpy(known - 1).to(history.device)]
    rest = last.expand(-1, len(steps) - len(known))
    return torch.where(info["niter"][:, None] > 0, torch.cat([sampled, rest], dim=1), last)


def _info(bench: Workbench, method: str, test: Axis) -> dict:
    known = list(dampings.of_method(bench, method))
    return {"method": method, "test_rows": test.count, "damping": known}


def _late(method: str, test: Axis, tile: Tile, arrays: Arrays) -> Iterator[str]:
    """Name the rows that are kept although they missed the tolerance, for each λ."""
    if "converged" not in arrays:
        return
    present = test.valid[tile.start[-1] : tile.stop[-1]]
    for each in arrays["converged"].reshape(-1, len(present)):
        late = np.flatnonzero(present & (each == 0))
        if len(late):
            names = ", ".join(map(str, test.ids[tile.start[-1] + late]))
            yield (
                f"{naming.factors(method)}: {len(late)} of {present.sum()} rows missed the "
                f"tolerance and are marked in `converged`: {names}"
            )


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
        from influence_dag.solvers.ekfac import KroneckerFactorization
        from influence_dag.solvers.kronecker_scores import RotatedGradients

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
