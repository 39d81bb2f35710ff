"""The curvature as a matrix: computed over all rows once, then kept true by differences."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError
from influence_dag.fingerprints import fingerprint
from influence_dag.stages.driver import Result, Whole, refresh_whole
from influence_dag.stages.formulas import FORMULAS
from influence_dag.stages.keys import model_key
from influence_dag.stages.reading import load_objective, load_rows, naming_rows, weight_sum
from influence_dag.stages.row_changes import row_changes
from influence_dag.stages.symbols import matrix_formula
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Coordinate
from influence_dag.study.curvatures import CURVATURE_KINDS

if TYPE_CHECKING:  # a plan needs the key alone: what computes imports torch
    import torch

    from influence_dag.objective import Objective, Rows

FORMULA = FORMULAS["matrices"]
LARGEST_SPECTRUM = 6000  # parameters up to which all eigenvalues are computed (p³ work)


def refresh(bench: Workbench, kind: str) -> Update:
    """The exact matrix over the training rows, float64, with its eigenvalues.

    It is a sum over rows. At the same θ a change of rows is an update by the difference,
    `n_new H_new = n_old H_old − Σ_removed + Σ_added` (n: the sum of weights where rows have some),
    exact to rounding; when that would touch as many rows as there are, or lose digits (`digits`),
    or the old rows are no longer kept, all are summed again. So are those of a difference that
    would be refused further on.
    """
    train, settings_key, key = _keys(bench, kind)
    produce = partial(_produce, bench, kind, train, settings_key)
    return refresh_whole(bench, kind, key, produce, reusable=pinned(bench, settings_key))


def _keys(bench: Workbench, kind: str) -> tuple[Axis, str, str]:
    """The rows, the key of all but these, and the key of everything."""
    train, settings_key = bench.axis("dataset", "train"), matrix_key(bench, kind)
    return train, settings_key, fingerprint(settings_key, train.fingerprint)


def matrix_key(bench: Workbench, kind: str) -> str:
    """Of a matrix, all but the rows."""
    return fingerprint(kind, FORMULA, model_key(bench))


def pinned(bench: Workbench, settings_key: str):
    """Whether a stored version serves although the rows changed: a choice of the study."""
    keep = bench.settings.curvature.refresh == "pinned"
    return lambda version: keep and version.attrs.get("settings_key") == settings_key


def attributes(bench: Workbench, settings_key: str, train: Axis, **extra) -> dict:
    """What every curvature artifact says about the θ and the rows that it saw."""
    of_rows = {
        "n_train": train.count,
        "weights": bench.require("dataset").attrs.get("weights", "none"),
        "weight_sum": weight_sum(bench, train),
    }
    return bench.attributes(
        settings_key=settings_key,
        model_data_version=bench.require("model").data_version,
        **of_rows | extra,
    )


@dataclass(frozen=True, eq=False)
class _Summed:
    """A sum over the current rows: how many were differentiated, what it lost by differences."""

    total: "torch.Tensor"
    rows: int
    error: float = 0.0

    @property
    def is_difference(self) -> bool:
        return self.error > 0


def _produce(bench: Workbench, kind: str, train: Axis, settings_key: str) -> Whole:
    objective = load_objective(bench)
    summed = _by_difference(bench, kind, train, objective, settings_key)
    if summed is None:
        summed = _over_all(bench, kind, train, objective)
    matrix, values = _mean(summed, weight_sum(bench, train))
    if summed.is_difference and not _plausible(bench, kind, matrix, values):
        bench.report(f"{kind}: made by difference it would be refused; all rows are summed again")
        summed = _over_all(bench, kind, train, objective)
        matrix, values = _mean(summed, weight_sum(bench, train))
    return _whole(bench, kind, train, settings_key, summed, matrix, values)


def _mean(summed: _Summed, weight: float) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """The matrix and its eigenvalues, where these are computed."""
    from influence_dag.curvature.finite import all_finite
    from influence_dag.objective.threads import eigenvalues

    matrix = summed.total.div_(weight)  # sums are exactly symmetric, so are their differences
    if len(matrix) > LARGEST_SPECTRUM or not all_finite(matrix):
        return matrix, None
    return matrix, eigenvalues(matrix)


def _plausible(
    bench: Workbench, kind: str, matrix: "torch.Tensor", values: "torch.Tensor | None"
) -> bool:
    """Whether what follows takes it: finite, and positive definite with the damping if it must."""
    from influence_dag.curvature.finite import all_finite
    from influence_dag.stages.digits import LIMIT, Digits

    if not all_finite(matrix):
        return False
    if CURVATURE_KINDS[kind].is_semidefinite and not Digits(bench.dtype).is_semidefinite(matrix):
        return False
    direct = bench.settings.methods.direct
    if values is None or direct is None or direct.curvature != kind:
        return True
    if direct.on_indefinite != "raise":
        return True
    damping = min(bench.settings.dampings, default=0.0)
    return float(values[0]) + damping > -LIMIT * float(values[-1])


def _whole(
    bench: Workbench,
    kind: str,
    train: Axis,
    settings_key: str,
    summed: _Summed,
    matrix: "torch.Tensor",
    values: "torch.Tensor | None",
) -> Whole:
    from influence_dag.curvature.finite import check_finite

    check_finite(kind, matrix)
    attrs = attributes(bench, settings_key, train, curvature=kind)
    about = {"formula": matrix_formula(kind, attrs["weights"])}
    arrays: dict[str, Result] = {kind: (("param", "param_t"), matrix.cpu().numpy(), about)}
    info = {"parameters": len(matrix), "n_train": train.count, "rows_differentiated": summed.rows}
    if values is not None:
        named = {"long_name": "eigenvalues, largest first"}
        arrays["eigenvalues"] = (("rank",), values.flip(0).cpu().numpy(), named)
        info |= {"largest_eigenvalue": float(values[-1]), "smallest_eigenvalue": float(values[0])}
    notes = {"dataset_version": bench.require("dataset").number}
    notes |= {"error_of_differences": summed.error}
    return Whole(arrays, attrs, info, _as_summed(train), notes=notes)


def _as_summed(train: Axis) -> tuple[Coordinate, ...]:
    """The rows that the sum is over: a new name of one is no new sum, and is not written here."""
    note = "as it stood when the sum was made: a row that was only renamed since has its old name"
    return tuple(replace(each, attrs={**each.attrs, "note": note}) for each in train.coordinates)


def _curvature(bench: Workbench, kind: str, objective: "Objective", rows: "Rows"):
    from influence_dag.curvature import CURVATURES

    return CURVATURES[kind](objective, rows, batch_size=bench.settings.compute.batch_size)


def _over_all(bench: Workbench, kind: str, train: Axis, objective: "Objective") -> _Summed:
    rows = load_rows(bench, train)
    with naming_rows(train):
        return _Summed(_curvature(bench, kind, objective, rows).dense_sum(rows), train.count)


def _by_difference(
    bench: Workbench, kind: str, train: Axis, objective: "Objective", settings_key: str
) -> _Summed | None:
    """The sum from the stored one and the rows that differ; None where it has to be made anew."""
    import torch

    from influence_dag.stages.digits import Digits

    stored = bench.undamaged(kind)
    if stored is None or stored.attrs.get("settings_key") != settings_key:
        return None
    seen = bench.axis_of(stored, "train")
    changes = row_changes(bench, stored, seen.fingerprint, train)
    if changes is None:
        return None
    before = torch.from_numpy(stored.read(kind)).to(bench.device)
    before.mul_(weight_sum(bench, seen, version=changes.before))
    total, parts = before.clone(), []
    for sign, rows in changes.signed(bench):
        try:
            parts.append(_curvature(bench, kind, objective, rows).dense_sum(rows))
        except ModelError:
            return None  # told over all rows, with the row's name
        total.add_(parts[-1], alpha=sign)
    digits = Digits(bench.dtype)
    error = digits.after(stored.attrs["error_of_differences"], before, parts, total)
    shown = 0.0
    if error <= digits.limit:
        shown = digits.measured(
            total,
            _curvature(bench, kind, objective, load_rows(bench, train)),
            weight_sum(bench, train),
        )
    if error > digits.limit or shown > digits.of_products:
        told = f"up to {error:.0e}" if error > digits.limit else f"{shown:.0e}"
        bench.report(f"{kind}: a difference would be wrong by {told}; all rows are summed again")
        return None
    return _Summed(total, len(changes), error)


def is_difference(bench: Workbench, kind: str) -> bool:
    """Whether the stored matrix was brought up to date by differences."""
    return bench.require(kind).attrs.get("error_of_differences", 0.0) > 0


def make_anew(bench: Workbench, kind: str) -> Update:
    """Sum the stored matrix over all rows again, although it is the one that is asked for."""
    train, settings_key, key = _keys(bench, kind)

    def produce() -> Whole:
        summed = _over_all(bench, kind, train, load_objective(bench))
        mean = _mean(summed, weight_sum(bench, train))
        return _whole(bench, kind, train, settings_key, summed, *mean)

    return refresh_whole(bench, kind, key, produce, again=True)
