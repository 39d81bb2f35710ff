"""What each method makes of the curvature: a factorisation kept as plain arrays."""

import itertools
import math

import numpy as np
import torch

from influence_dag.curvature import Curvature, DenseCurvature
from influence_dag.curvature.kronecker import KroneckerSums
from influence_dag.errors import StudyError
from influence_dag.labelled import Axis
from influence_dag.objective import Rows
from influence_dag.solvers import (
    EKFAC,
    KFAC,
    Blockwise,
    Factorization,
    Method,
    build,
    parameter_blocks,
)
from influence_dag.solvers.rounding import rounding
from influence_dag.stages import dampings, matrices
from influence_dag.stages.differences import row_changes
from influence_dag.stages.model import load_objective, load_rows, model_key
from influence_dag.stages.refreshing import Whole, refresh_whole
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.store.fingerprints import fingerprint

FORMULA = 1


def artifact(method: str) -> str:
    return f"{method}/curvature"


def kind(bench: Workbench, method: str) -> str:
    """`hessian` or `gauss_newton`: the matrix whose inverse the method approximates."""
    return bench.settings.methods[method].curvature


def uses_matrix(method: str) -> bool:
    """True for methods that start from the stored matrix rather than from products with it."""
    return method == "direct"


def build_method(bench: Workbench, method: str, damping: float | None = None) -> Method:
    """The solver with the study's settings, on blocks of parameters when the study says so.

    `damping`: an automatic λ that is not stored yet.
    """
    asked, solver = bench.settings.methods[method], bench.settings.methods[method].solver
    if method == "direct":
        solver["damping"] = _factorised_for(bench, method) if damping is None else damping
        size = bench.require("model").attrs["info"]["parameters"]
        solver["rounding"] = rounding(bench.dtype, size)  # rows are differentiated in that dtype
    if asked.blocks == "full":
        return build(method, solver)
    try:
        blocks = parameter_blocks(parameter_slices(bench), asked.blocks)
        return Blockwise(method=build(method, solver), blocks=blocks, dampings=asked.block_damping)
    except ValueError as error:
        raise StudyError(f"{bench.study.name}: methods.{method}: {error}") from error


def parameter_slices(bench: Workbench) -> dict[str, slice]:
    """Where each named parameter lies in the parameter vector."""
    attrs = bench.require("model").attrs
    sizes = [math.prod(shape) for shape in attrs["parameter_shapes"]]
    ends = list(itertools.accumulate(sizes))
    names = attrs["parameter_names"]
    return {n: slice(end - size, end) for n, size, end in zip(names, sizes, ends, strict=True)}


def load_matrix(bench: Workbench, name: str) -> DenseCurvature:
    matrix = torch.from_numpy(bench.require(name).read(name))
    return DenseCurvature(matrix.to(bench.device))


def load_operator(bench: Workbench, method: str, seen: Version | None = None) -> Curvature:
    """What a method multiplies with: the stored matrix, or products over training rows.

    With `seen`, a stored factorisation, over the rows that it was made from (which are not the
    current ones when the curvature is pinned).
    """
    if uses_matrix(method):
        return load_matrix(bench, kind(bench, method))
    axis, version = _rows_of(bench, seen) if seen else (bench.axis("dataset", "train"), None)
    return curvature_over(bench, method, load_rows(bench, axis, version=version))


def curvature_over(bench: Workbench, method: str, rows: Rows) -> Curvature:
    """The method's curvature as products over some rows."""
    curvature = matrices.KINDS[kind(bench, method)]
    return curvature(load_objective(bench), rows, batch_size=bench.settings.compute.batch_size)


def _rows_of(bench: Workbench, seen: Version) -> tuple[Axis, Version]:
    current = bench.require("dataset")
    if bench.axis_of(current, "train").fingerprint == seen.attrs["train_rows"]:
        return bench.axis_of(current, "train"), current
    number = seen.attrs["dataset_version"]
    version = bench.store.version("dataset", number)
    return bench.axis_of(version, "train"), version


def refresh(bench: Workbench, method: str) -> Update:
    """The expensive half of a method, stored: a factor, an eigenbasis, a preconditioner."""
    train = bench.axis("dataset", "train")
    fitted = factorization_settings(bench, method)
    settings_key = fingerprint(artifact(method), FORMULA, model_key(bench), fitted)
    key = fingerprint(settings_key, _read(bench, method, train.fingerprint))

    def produce() -> Whole:
        operator = load_operator(bench, method)
        auto = dampings.settled(bench, method, operator)
        single = auto is not None and not bench.settings.methods[method].block_damping
        solver = build_method(bench, method, auto.value if auto and single else None)
        sums, touched = _updated_sums(bench, method, solver, train, settings_key)
        factorization = (
            solver.factorize(operator, sums=sums)
            if isinstance(solver, EKFAC | KFAC)
            else solver.factorize(operator)
        )
        arrays = {name: _labelled(name, tensor) for name, tensor in factorization.tensors().items()}
        if auto is None and bench.settings.damping == "auto":
            auto = dampings.of_factors(factorization)
        resolved = {"automatic_damping": auto.value, "damping_reason": auto.reason} if auto else {}
        attrs = matrices.attributes(
            bench,
            settings_key,
            train.count,
            method=method,
            method_settings=fitted,
            curvature=kind(bench, method),
            train_rows=train.fingerprint,
            **resolved,
        )
        info = dict(getattr(factorization, "info", {}))  # rank, captured share, layers …
        if isinstance(solver, EKFAC | KFAC):
            info["rows_summed"] = touched
        return Whole(
            arrays, attrs, info, notes={"dataset_version": bench.require("dataset").number}
        )

    return refresh_whole(
        bench, artifact(method), key, produce, reusable=matrices.pinned(bench, settings_key)
    )


def _updated_sums(
    bench: Workbench, method: str, solver: Method, train: Axis, settings_key: str
) -> tuple[KroneckerSums | None, int]:
    """A Kronecker factorisation's sums over rows from the stored ones and the rows that differ.

    And how many rows those are; None and all where all are to be summed. (Drawn labels depend on
    all rows; blocks keep sums of their own, which are not taken up.)
    """
    stored = bench.undamaged(artifact(method))
    if (
        not isinstance(solver, EKFAC | KFAC)
        or stored is None
        or stored.attrs.get("settings_key") != settings_key
    ):
        return None, train.count
    changes = row_changes(bench, stored, stored.attrs["train_rows"], train)
    if changes is None:
        return None, train.count
    tensors = {name: _tensor(bench, stored, name) for name in stored.variables}
    total = KroneckerSums.from_tensors(tensors)
    for sign, rows in changes.signed(bench):
        part = solver.sums(curvature_over(bench, method, rows))
        if part is None:
            return None, train.count
        total = total + part if sign > 0 else total - part
    return total, len(changes)


def _read(bench: Workbench, method: str, train_rows: str) -> str:
    return bench.require(kind(bench, method)).data_version if uses_matrix(method) else train_rows


def factorization_settings(bench: Workbench, method: str) -> dict:
    """The settings that the factorisation depends on."""
    settings, known = bench.settings.methods[method].factorization, bench.settings.dampings
    if bench.settings.damping == "auto":
        settings["damping"] = "auto"
    elif method == "direct":
        settings["damping"] = "any" if _factorised_for(bench, method) is None else list(known)
    return settings


def _factorised_for(bench: Workbench, method: str) -> float | None:
    """The one λ that a direct factorisation is for; None: it serves several."""
    known, blocks = bench.settings.dampings, bench.settings.methods[method].block_damping
    return known[0] if len(known) == 1 and not blocks else None


def _labelled(name: str, tensor: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray, dict]:
    """A tensor as an array with named dimensions; a number becomes one of length 1."""
    values = np.atleast_1d(tensor.detach().cpu().numpy())
    return tuple(f"{name}_{k}" for k in range(values.ndim)), values, {"scalar": tensor.ndim == 0}


def _tensor(bench: Workbench, version: Version, name: str) -> torch.Tensor:
    tensor = torch.from_numpy(version.read(name)).to(bench.device)
    return tensor[0] if version.array(name).attrs["scalar"] else tensor


def load_factorization(bench: Workbench, method: str) -> Factorization:
    """The stored factorisation, ready to solve."""
    version = bench.require(artifact(method))
    tensors = {name: _tensor(bench, version, name) for name in version.variables}
    curvature = None if uses_matrix(method) else load_operator(bench, method, version)
    return build_method(bench, method).restore(tensors, curvature)
