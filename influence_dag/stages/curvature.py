"""What each method makes of the curvature: a factorisation kept as plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.errors import IndefiniteError, ModelError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages import matrices, methods, naming
from influence_dag.stages.driver import Whole, refresh_whole
from influence_dag.stages.reading import naming_rows
from influence_dag.stages.row_changes import row_changes
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench

if TYPE_CHECKING:  # a plan needs the key alone: what computes imports torch
    import torch

    from influence_dag.curvature import Curvature
    from influence_dag.curvature.kronecker import KroneckerSums
    from influence_dag.solvers import Factorization, Method
    from influence_dag.stages.digits import Digits


def refresh(bench: Workbench, method: str) -> Update:
    """The expensive half of a method, stored: a factor, an eigenbasis, a preconditioner."""
    train = bench.axis("dataset", "train")
    fitted = methods.factorization_settings(bench, method)
    settings_key = methods.curvature_key(bench, method)
    for matrix in _matrices_read(bench, method):
        methods.check_of_now(bench, matrix, "settings_key", matrices.matrix_key(bench, matrix))
    key = fingerprint(settings_key, _read(bench, method, train.fingerprint))

    def produce() -> Whole:
        from influence_dag.curvature.finite import check_finite
        from influence_dag.solvers import EKFAC, KFAC
        from influence_dag.stages import automatic

        operator = methods.load_operator(bench, method)
        slots = train.slots[train.drawn] if methods.draws_in_order(bench, method) else None
        with naming_rows(train, slots):
            auto = automatic.settled(bench, method, operator)
        single = auto is not None and not bench.settings.methods[method].block_damping
        solver = methods.build_method(bench, method, auto.value if auto and single else None)
        updated = _updated_sums(bench, method, solver, train, settings_key)
        with naming_rows(train, slots):
            worked_on = _worked_on(operator, solver)
            factorization = _factorized(bench, method, solver, worked_on, updated)
        for name, tensor in factorization.tensors().items():
            check_finite(f"{naming.curvature(method)}: {name}", tensor)
        tensors = factorization.tensors().items()
        named = {naming.array_name(name): tensor for name, tensor in tensors}
        arrays = {name: _labelled(name, tensor) for name, tensor in named.items()}
        if auto is None and bench.settings.is_auto_damped:
            auto = automatic.of_factors(factorization)
        resolved = {"automatic_damping": auto.value, "damping_reason": auto.reason} if auto else {}
        attrs = matrices.attributes(
            bench,
            settings_key,
            train,
            method=method,
            method_settings=fitted,
            curvature=methods.kind(bench, method),
            **resolved,
            **_rows_seen(bench, method, train),
        )
        info = dict(getattr(factorization, "info", {}))  # rank, captured share, layers …
        typical = auto or automatic.typical(bench, method, operator, factorization)
        if typical is not None and bench.settings.methods[method].is_damped:
            info["mean_eigenvalue"] = typical.value
        if isinstance(solver, EKFAC | KFAC):
            info["rows_summed"] = updated.rows if updated else train.count
        notes = {"dataset_version": bench.require("dataset").number}
        notes |= {"error_of_differences": updated.errors if updated else {}}
        return Whole(arrays, attrs, info, notes=notes)

    return refresh_whole(
        bench, naming.curvature(method), key, produce, reusable=matrices.pinned(bench, settings_key)
    )


def _worked_on(operator: "Curvature", solver: "Method") -> "Curvature":
    """The matrix itself where a method's products, before any solve, would cost more."""
    from influence_dag.solvers.forming import worth_forming

    worth = worth_forming(solver, size=operator.size, rows=0, damping=1.0)
    return methods.formed(operator) if worth else operator


def _factorized(
    bench: Workbench,
    method: str,
    solver: "Method",
    operator: "Curvature",
    updated: "_UpdatedSums | None",
) -> "Factorization":
    """A matrix that was made by differences is made anew before anyone is refused."""
    from influence_dag.solvers import EKFAC, KFAC

    if isinstance(solver, EKFAC | KFAC):
        return solver.factorize(operator, sums=updated and updated.sums)
    try:
        return solver.factorize(operator)
    except (IndefiniteError, ModelError):
        matrix, asked = methods.kind(bench, method), bench.settings.methods[method]
        if not asked.uses_matrix or not matrices.is_difference(bench, matrix):
            raise
        matrices.make_anew(bench, matrix)
        return solver.factorize(methods.load_operator(bench, method))


@dataclass(frozen=True, eq=False)
class _UpdatedSums:
    """Kronecker sums from stored ones and `rows` that differ; what each sum has lost by that."""

    sums: "KroneckerSums"
    rows: int
    errors: dict[str, float]


def _updated_sums(
    bench: Workbench, method: str, solver: "Method", train: Axis, settings_key: str
) -> _UpdatedSums | None:
    """A Kronecker factorisation's sums over rows; None where all rows are to be summed.

    (Drawn labels depend on all rows; blocks keep sums of their own, which are not taken up.)
    """
    from influence_dag.curvature.kronecker import KroneckerSums
    from influence_dag.solvers import EKFAC, KFAC
    from influence_dag.stages.digits import Digits

    stored = bench.undamaged(naming.curvature(method))
    if (
        not isinstance(solver, EKFAC | KFAC)
        or stored is None
        or stored.attrs.get("settings_key") != settings_key
    ):
        return None
    changes = row_changes(bench, stored, stored.attrs["train_rows"], train)
    if changes is None:
        return None
    before = total = KroneckerSums.from_tensors(methods.stored_tensors(bench, stored))
    parts = []
    for sign, rows in changes.signed(bench):
        try:
            part = solver.sums(methods.curvature_over(bench, method, rows))
        except ModelError:
            return None  # told over all rows, with the row's name
        if part is None:
            return None
        parts.append(part)
        total = total + part if sign > 0 else total - part
    digits = Digits(bench.dtype)
    errors = _errors(digits, stored.attrs["error_of_differences"], before, parts, total)
    if lost := _lost(digits, errors, total):
        bench.report(f"{naming.curvature(method)}: {lost}; all rows are summed again")
        return None
    return _UpdatedSums(total, len(changes), errors)


def _matrices(sums: "KroneckerSums") -> "dict[str, torch.Tensor]":
    """The matrices among the tensors: one of activations and of gradients a layer, dense blocks."""
    return {name: each for name, each in sums.tensors().items() if name.endswith("_sum")}


def _errors(
    digits: "Digits",
    errors: Mapping[str, float],
    before: "KroneckerSums",
    parts: "Sequence[KroneckerSums]",
    total: "KroneckerSums",
) -> dict[str, float]:
    """The bound of each sum, from what it had and what came and went."""
    old, each = _matrices(before), [_matrices(part) for part in parts]
    return {
        name: digits.after(errors.get(name, 0.0), old[name], [part[name] for part in each], matrix)
        for name, matrix in _matrices(total).items()
    }


def _lost(digits: "Digits", errors: Mapping[str, float], total: "KroneckerSums") -> str:
    """Why a difference cannot be used, in words; empty where it can."""
    from influence_dag.curvature.finite import all_finite

    worst = max(errors, key=errors.__getitem__, default="")
    if worst and errors[worst] > digits.limit:
        return f"a difference would be wrong by up to {errors[worst]:.0e} ({worst})"
    for name, matrix in _matrices(total).items():
        if not all_finite(matrix) or not digits.is_semidefinite(matrix):
            return f"{name}, made by difference, is no sum of squares any more"
    return ""


def _read(bench: Workbench, method: str, train_rows: str) -> str:
    """Of which rows it is: of the matrix's, or of those of now, and of those that λ is settled by.

    A matrix that is pinned, or that a refresh has not got to, is of others than there are now.
    """
    if bench.settings.methods[method].uses_matrix:
        return bench.require(methods.kind(bench, method)).data_version
    damped_by = bench.settings.matrix_of_damping(method)
    of_damping = bench.axis(damped_by, "train").fingerprint if damped_by else train_rows
    return train_rows if of_damping == train_rows else f"{train_rows}, λ by {of_damping}"


def _rows_seen(bench: Workbench, method: str, train: Axis) -> dict[str, Any]:
    """What is said of the rows that a curvature is of: those of a stored matrix are its own."""
    if not bench.settings.methods[method].uses_matrix:
        return {"train_rows": train.fingerprint}
    matrix = bench.require(kind := methods.kind(bench, method))
    said = {name: matrix.attrs[name] for name in ("n_train", "weights", "weight_sum")}
    return said | {"train_rows": bench.axis(kind, "train").fingerprint}


def _matrices_read(bench: Workbench, method: str) -> set[str]:
    """The stored matrix that is factorised, or says what λ is."""
    own = methods.kind(bench, method) if bench.settings.methods[method].uses_matrix else None
    return {each for each in (own, bench.settings.matrix_of_damping(method)) if each}


def _labelled(name: str, tensor: "torch.Tensor") -> tuple[tuple[str, ...], np.ndarray, dict]:
    """A tensor as an array with named dimensions; a number becomes one of length 1."""
    values = np.atleast_1d(tensor.detach().cpu().numpy())
    return tuple(f"{name}_{k}" for k in range(values.ndim)), values, {"scalar": tensor.ndim == 0}
