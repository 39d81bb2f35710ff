"""What each method makes of the curvature: a factorisation kept as plain arrays."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from influence_dag.curvature import Curvature, DenseCurvature
from influence_dag.curvature.kronecker import KroneckerSums
from influence_dag.datasets.slots import Axis
from influence_dag.errors import IndefiniteError, ModelError, StudyError
from influence_dag.fingerprints import fingerprint
from influence_dag.objective import modules
from influence_dag.objective.objective import Rows
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
from influence_dag.stages.digits import Digits
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.model import callable_key, load_objective, load_rows, model_key
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

FORMULA = 2


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
    field = f"methods.{method}.distribution"
    if name := bench.settings.methods.drawn_by.get(field):
        solver["distribution"] = modules.import_callable(name, bench.study.root, field)
    if asked.blocks == "full":
        return build(method, solver)
    try:
        blocks = parameter_blocks(parameter_slices(bench), asked.blocks)
        return Blockwise(method=build(method, solver), blocks=blocks, dampings=asked.block_damping)
    except ValueError as error:
        raise StudyError(f"{bench.study.name}: methods.{method}: {error}") from error


def block_names(bench: Workbench, method: str) -> tuple[str, ...]:
    """The blocks of parameters that a method works on, by name; none where it works on all."""
    blocks = bench.settings.methods[method].blocks
    return () if blocks == "full" else tuple(parameter_blocks(parameter_slices(bench), blocks))


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
        updated = _updated_sums(bench, method, solver, train, settings_key)
        factorization = _factorized(bench, method, solver, operator, updated)
        for name, tensor in factorization.tensors().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise matrices.not_finite(f"{artifact(method)}: {name}", tensor)
        arrays = {name: _labelled(name, tensor) for name, tensor in factorization.tensors().items()}
        if auto is None and bench.settings.is_auto_damped:
            auto = dampings.of_factors(factorization)
        resolved = {"automatic_damping": auto.value, "damping_reason": auto.reason} if auto else {}
        attrs = matrices.attributes(
            bench,
            settings_key,
            train,
            method=method,
            method_settings=fitted,
            curvature=kind(bench, method),
            train_rows=train.fingerprint,
            **resolved,
        )
        info = dict(getattr(factorization, "info", {}))  # rank, captured share, layers …
        typical = auto or dampings.typical(bench, method, operator, factorization)
        if typical is not None and method != "identity":
            info["mean_eigenvalue"] = typical.value
        if isinstance(solver, EKFAC | KFAC):
            info["rows_summed"] = updated.rows if updated else train.count
        notes = {
            "dataset_version": bench.require("dataset").number,
            "error_of_differences": updated.errors if updated else {},
        }
        return Whole(arrays, attrs, info, notes=notes)

    return refresh_whole(
        bench, artifact(method), key, produce, reusable=matrices.pinned(bench, settings_key)
    )


def _factorized(
    bench: Workbench,
    method: str,
    solver: Method,
    operator: Curvature,
    updated: "_UpdatedSums | None",
) -> Factorization:
    """A matrix that was made by differences is made anew before anyone is refused."""
    if isinstance(solver, EKFAC | KFAC):
        return solver.factorize(operator, sums=updated and updated.sums)
    try:
        return solver.factorize(operator)
    except (IndefiniteError, ModelError):
        matrix = kind(bench, method)
        if not uses_matrix(method) or not matrices.is_difference(bench, matrix):
            raise
        matrices.make_anew(bench, matrix)
        return solver.factorize(load_operator(bench, method))


@dataclass(frozen=True, eq=False)
class _UpdatedSums:
    """Kronecker sums from stored ones and `rows` that differ; what each sum has lost by that."""

    sums: KroneckerSums
    rows: int
    errors: dict[str, float]


def _updated_sums(
    bench: Workbench, method: str, solver: Method, train: Axis, settings_key: str
) -> _UpdatedSums | None:
    """A Kronecker factorisation's sums over rows; None where all rows are to be summed.

    (Drawn labels depend on all rows; blocks keep sums of their own, which are not taken up.)
    """
    stored = bench.undamaged(artifact(method))
    if (
        not isinstance(solver, EKFAC | KFAC)
        or stored is None
        or stored.attrs.get("settings_key") != settings_key
    ):
        return None
    changes = row_changes(bench, stored, stored.attrs["train_rows"], train)
    if changes is None:
        return None
    tensors = {name: _tensor(bench, stored, name) for name in stored.variables}
    before = total = KroneckerSums.from_tensors(tensors)
    parts = []
    for sign, rows in changes.signed(bench):
        part = solver.sums(curvature_over(bench, method, rows))
        if part is None:
            return None
        parts.append(part)
        total = total + part if sign > 0 else total - part
    errors = _errors(bench, stored.attrs["error_of_differences"], before, parts, total)
    if lost := _lost(bench, errors, total):
        bench.report(f"{artifact(method)}: {lost}; all rows are summed again")
        return None
    return _UpdatedSums(total, len(changes), errors)


def _matrices(sums: KroneckerSums) -> dict[str, torch.Tensor]:
    """The matrices among the tensors: one of activations and of gradients a layer, dense blocks."""
    return {name: each for name, each in sums.tensors().items() if name.endswith("_sum")}


def _errors(
    bench: Workbench,
    errors: Mapping[str, float],
    before: KroneckerSums,
    parts: Sequence[KroneckerSums],
    total: KroneckerSums,
) -> dict[str, float]:
    """The bound of each sum, from what it had and what came and went."""
    old, each = _matrices(before), [_matrices(part) for part in parts]
    return {
        name: Digits(bench.dtype).after(
            errors.get(name, 0.0), old[name], [part[name] for part in each], matrix
        )
        for name, matrix in _matrices(total).items()
    }


def _lost(bench: Workbench, errors: Mapping[str, float], total: KroneckerSums) -> str:
    """Why a difference cannot be used, in words; empty where it can."""
    digits = Digits(bench.dtype)
    worst = max(errors, key=errors.__getitem__, default="")
    if worst and errors[worst] > digits.limit:
        return f"a difference would be wrong by up to {errors[worst]:.0e} ({worst})"
    for name, matrix in _matrices(total).items():
        if not bool(matrix.isfinite().all()) or not digits.is_semidefinite(matrix):
            return f"{name}, made by difference, is no sum of squares any more"
    return ""


def _read(bench: Workbench, method: str, train_rows: str) -> str:
    return bench.require(kind(bench, method)).data_version if uses_matrix(method) else train_rows


def factorization_settings(bench: Workbench, method: str) -> dict:
    """The settings that the factorisation depends on."""
    settings, known = bench.settings.methods[method].factorization, bench.settings.dampings
    if bench.settings.is_auto_damped:
        settings["damping"] = "auto"
    elif method == "direct":
        settings["damping"] = "any" if _factorised_for(bench, method) is None else list(known)
    field = f"methods.{method}.distribution"
    if name := bench.settings.methods.drawn_by.get(field):
        settings["distribution_code"] = callable_key(bench.study, name, field)
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
