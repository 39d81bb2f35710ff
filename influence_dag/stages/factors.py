"""Influence factors `(H + λI)⁻¹ ∇θ L(z_test)`, one row a test row."""

import json
from functools import cached_property

import numpy as np
import torch

from influence_dag.curvature import Curvature
from influence_dag.gradients import per_sample_gradients
from influence_dag.labelled import Axis
from influence_dag.method_settings import ITERATIVE
from influence_dag.solvers import Factorization
from influence_dag.solvers.base import residuals
from influence_dag.stages import curvature
from influence_dag.stages.base import Part, Result, Update, Workbench, provenance, refresh_blocks
from influence_dag.stages.model import load_objective, load_rows, measurement_key, model_key
from influence_dag.store import Coordinate, Keys, Layout, Variable, Version, as_keys
from influence_dag.store.fingerprints import fingerprint, grid_keys
from influence_dag.store.layout import row_chunks

FORMULA = 1
PER_ROW = {
    "residual": "relative residual ‖(H + λI) s − b‖ / ‖b‖",
    "niter": "iterations",
    "converged": "1 where the tolerance was met",
}

RESIDUAL_CURVE = "residual_by_iteration"


def artifact(method: str) -> str:
    return f"{method}/influence_factors"


def refresh(bench: Workbench, method: str) -> Update:
    """Solve for the test rows whose block is not stored under its key."""
    test = bench.axis("dataset", "test")
    size = bench.require("model").attrs["info"]["parameters"]
    base = _base_key(bench, method)
    layout = _layout(bench, method, test, size, base)
    lead = layout.variables[0]
    names = tuple(variable.name for variable in layout.variables)
    chunk = lead.chunks[-2]
    keys = grid_keys(base, *damping_digests(bench), test.digests(chunk))
    solver = _Solver(bench, method, test, names)
    return refresh_blocks(
        bench,
        artifact(method),
        layout,
        [Part(names, keys, solver)],
        results=solver.curve,
        info=_info(bench, method, test),
    )


def _base_key(bench: Workbench, method: str) -> str:
    """Everything but the test row: θ, the factorisation, how it is solved, the measurement."""
    version = bench.require(curvature.artifact(method))
    settings = bench.settings.methods[method].model_dump(mode="json")
    return fingerprint(
        "factors",
        FORMULA,
        model_key(bench),
        measurement_key(bench.study),
        version.data_version,
        method,
        settings,
        bench.settings.dampings if len(bench.settings.dampings) == 1 else "sweep",
    )


def damping_digests(bench: Workbench) -> list[Keys]:
    """What distinguishes the blocks of a damping sweep; with one λ there is no such axis."""
    dampings = bench.settings.dampings
    return [as_keys([fingerprint(value) for value in dampings])] if len(dampings) > 1 else []


def damping_axis(
    bench: Workbench,
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[Coordinate, ...]]:
    """Leading dims, their sizes and coordinates: empty with one λ."""
    dampings = bench.settings.dampings
    if len(dampings) == 1:
        return (), (), ()
    values = Coordinate("damping", ("damping",), np.array(dampings), {"long_name": "λ of H + λI"})
    return ("damping",), (len(dampings),), (values,)


def _layout(bench: Workbench, method: str, test: Axis, size: int, base: str) -> Layout:
    dtype = np.dtype(bench.settings.compute.dtype)
    dims, sizes, coordinates = damping_axis(bench)
    ones = (1,) * len(sizes)
    name = artifact(method)
    ideal = (*ones, row_chunks(len(test), size * dtype.itemsize))
    chunk = bench.row_chunk(name, "influence_factors", "test", ideal)
    factors = Variable(
        "influence_factors",
        (*dims, "test", "param"),
        (*sizes, len(test), size),
        dtype.str,
        (*ones, chunk, size),
        {"formula": "(H + λI)⁻¹ ∇θ L(z_test)", "long_name": "influence factors"},
    )
    iterative = ("niter", "converged") if method in ITERATIVE else ()
    per_row = tuple(
        Variable(
            info,
            (*dims, "test"),
            (*sizes, len(test)),
            "float32",
            (*ones, chunk),
            {"long_name": PER_ROW[info]},
            coordinate=True,
        )
        for info in ("residual", *iterative)
    )
    attrs = method_attributes(bench, method, base_key=base)
    known = {"settings": bench.settings.model_dump(mode="json"), "project": str(bench.study.root)}
    made = {**provenance(), "study_settings": json.dumps(known)}
    return Layout((factors, *per_row), (*test.coordinates(), *coordinates), attrs, made)


def method_attributes(bench: Workbench, method: str, **extra) -> dict:
    """What every array of a method says about itself."""
    version = bench.require(curvature.artifact(method))
    dampings = bench.settings.dampings
    return bench.attributes(
        method=method,
        method_settings=bench.settings.methods[method].model_dump(mode="json"),
        damping=dampings[0] if len(dampings) == 1 else list(dampings),
        n_train=version.attrs["n_train"],
        curvature=curvature.kind(bench, method),
        measurement=bench.settings.model.measurement or "the loss",
        model_data_version=bench.require("model").data_version,
        curvature_data_version=version.data_version,
        **extra,
    )


def _info(bench: Workbench, method: str, test: Axis) -> dict:
    return {"method": method, "test_rows": test.count, "damping": list(bench.settings.dampings)}


class _Solver:
    """Computes tiles; model and factorisation are loaded when the first one is asked for."""

    def __init__(self, bench: Workbench, method: str, test: Axis, names: tuple[str, ...]):
        self.bench, self.method, self.test, self.names = bench, method, test, names
        self._loaded: tuple | None = None
        self._histories: list[np.ndarray] = []

    def __call__(self, tile) -> dict[str, np.ndarray]:
        slots = slice(tile.start[-1], tile.stop[-1])
        dampings = self.bench.settings.dampings
        sweep = range(tile.start[0], tile.stop[0]) if len(dampings) > 1 else None
        blocks = [self._solve(slots, dampings[k]) for k in (sweep or [0])]
        if sweep is None:
            return blocks[0]
        return {name: np.stack([block[name] for block in blocks]) for name in self.names}

    def _load(self) -> tuple:
        if self._loaded is None:
            factorization = curvature.load_factorization(self.bench, self.method)
            operator = curvature.load_operator(
                self.bench, self.method, self.bench.require(curvature.artifact(self.method))
            )
            self._loaded = load_objective(self.bench), factorization, operator
        return self._loaded

    @cached_property
    def _stored(self) -> Version | None:
        """The factors of the refresh before, where a solve can start from some."""
        return self.bench.undamaged(artifact(self.method)) if self.method in ITERATIVE else None

    def _previous(self, slots: np.ndarray, damping: float, size: int) -> torch.Tensor | None:
        """Stored factors of the same slots, from which an iterative solve starts; zero elsewhere.

        After a small change of the data they are close to the answer. They decide how many
        iterations it takes, not what comes out.
        """
        stored = self._stored
        if stored is None or stored.attrs["damping"] != damping:
            return None
        array = stored.array("influence_factors")
        start = torch.zeros(len(slots), size, dtype=self.bench.dtype)
        known = np.flatnonzero(slots < array.shape[0])
        if array.shape[1] == size and len(known):
            values = torch.from_numpy(np.asarray(array.oindex[slots[known]]))
            start[torch.from_numpy(known)] = values.nan_to_num().to(self.bench.dtype)
        return start.to(self.bench.device)

    def _solve(self, slots: slice, damping: float) -> dict[str, np.ndarray]:
        objective, factorization, operator = self._load()
        present = np.flatnonzero(self.test.valid[slots])
        count = slots.stop - slots.start
        dtype = np.dtype(self.bench.settings.compute.dtype)
        block: dict[str, np.ndarray] = {
            name: np.full(count, np.nan, np.float32) for name in self.names
        }
        block["influence_factors"] = np.full((count, objective.size), np.nan, dtype)
        if not len(present):
            return block
        rows = load_rows(self.bench, self.test, slots.start + present)
        rhs = per_sample_gradients(objective, rows, of="measurement").dense()
        x0 = self._previous(slots.start + present, damping, objective.size)
        x, info = solve_with_residuals(factorization, operator, rhs, damping, x0)
        block["influence_factors"][present] = x.cpu().numpy()
        for name in self.names[1:]:
            block[name][present] = info[name].float().cpu().numpy()
        if "residual_history" in info:
            self._histories.append(info["residual_history"].double().cpu().numpy())
        return block

    def curve(self) -> dict[str, Result]:
        """How the rows of these solves converged, where the solver tells: median and worst."""
        steps = max((history.shape[1] for history in self._histories), default=0)
        if not steps:
            return {}
        ends = [(0, 0), (0, steps)]
        padded = [np.pad(h, ends, constant_values=np.nan)[:, :steps] for h in self._histories]
        reached = _carried_on(np.concatenate(padded))
        curve = np.stack([np.median(reached, axis=0), reached.max(axis=0)])
        about = {"long_name": "relative residual after each iteration, of the last rows solved"}
        return {RESIDUAL_CURVE: (("median_and_worst", "iteration"), curve, about)}


def _carried_on(histories: np.ndarray) -> np.ndarray:
    """Residuals by iteration without the rows that took none; one that has stopped stays."""
    begun = histories[~np.isnan(histories).all(axis=1)]
    last = np.where(np.isnan(begun), 0, np.arange(begun.shape[1]))
    return np.take_along_axis(begun, np.maximum.accumulate(last, axis=1), axis=1)


def solve_with_residuals(
    factorization: Factorization,
    operator: Curvature,
    rhs: torch.Tensor,
    damping: float,
    x0: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The solution and its info, which always has the relative residual of each row."""
    solution = factorization.solve(rhs, damping=damping, x0=x0)
    info = dict(solution.info)
    if "residual" not in info:
        x, b = solution.x.to(operator.dtype), rhs.to(operator.dtype)
        info["residual"] = residuals(operator, x, b, damping=damping)
    return solution.x, info


def load_factors(
    bench: Workbench, method: str, slots: slice, damping: int | None = None
) -> torch.Tensor:
    """A run of stored factors, `(test, param)`; `damping` is the position in a sweep."""
    array = bench.require(artifact(method)).array("influence_factors")
    values = array[slots] if damping is None else array[damping, slots]
    return torch.from_numpy(np.asarray(values)).to(bench.device)
