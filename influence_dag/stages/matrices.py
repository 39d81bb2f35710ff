"""The curvature as a matrix: computed over all rows once, then kept true by differences."""

import torch

from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.labelled import Axis
from influence_dag.objective import Objective
from influence_dag.stages.differences import row_changes
from influence_dag.stages.model import load_objective, load_rows, model_key
from influence_dag.stages.refreshing import Result, Whole, refresh_whole
from influence_dag.stages.updates import Update
from influence_dag.stages.wording import matrix_formula
from influence_dag.stages.workbench import Workbench
from influence_dag.store.fingerprints import fingerprint

FORMULA = 1
LARGEST_SPECTRUM = 6000  # parameters up to which all eigenvalues are computed (p³ work)
KINDS = {"hessian": Hessian, "gauss_newton": GaussNewton}


def refresh(bench: Workbench, kind: str) -> Update:
    """The exact matrix over the training rows, float64, with its eigenvalues.

    It is a sum over rows. At the same θ a change of rows is an update by the difference,
    `n_new H_new = n_old H_old − Σ_removed + Σ_added`, exact to rounding; when that would touch
    as many rows as there are, or the old rows are no longer kept, all are summed again.
    """
    train = bench.axis("dataset", "train")
    settings_key = fingerprint(kind, FORMULA, model_key(bench))
    key = fingerprint(settings_key, train.fingerprint)
    return refresh_whole(
        bench,
        kind,
        key,
        lambda: _produce(bench, kind, train, settings_key),
        reusable=pinned(bench, settings_key),
    )


def pinned(bench: Workbench, settings_key: str):
    """Whether a stored version serves although the rows changed: a choice of the study."""
    keep = bench.settings.curvature.refresh == "pinned"
    return lambda version: keep and version.attrs.get("settings_key") == settings_key


def attributes(bench: Workbench, settings_key: str, n_train: int, **extra) -> dict:
    """What every curvature artifact says about the θ and the rows that it saw."""
    return bench.attributes(
        settings_key=settings_key,
        n_train=n_train,
        model_data_version=bench.require("model").data_version,
        **extra,
    )


def _produce(bench: Workbench, kind: str, train: Axis, settings_key: str) -> Whole:
    objective = load_objective(bench)
    total, touched = _updated(bench, kind, train, objective, settings_key)
    if total is None:
        total, touched = _sum(bench, kind, objective, load_rows(bench, train)), train.count
    matrix = total.div_(train.count)  # sums are exactly symmetric, and so are their differences
    arrays: dict[str, Result] = {
        kind: (("param", "param_t"), matrix.cpu().numpy(), {"formula": matrix_formula(kind)})
    }
    info = {"parameters": objective.size, "n_train": train.count, "rows_differentiated": touched}
    if objective.size <= LARGEST_SPECTRUM:
        values = torch.linalg.eigvalsh(matrix)
        arrays["eigenvalues"] = (
            ("rank",),
            values.flip(0).cpu().numpy(),
            {"long_name": "eigenvalues, largest first"},
        )
        info |= {"largest_eigenvalue": float(values[-1]), "smallest_eigenvalue": float(values[0])}
    attrs = attributes(bench, settings_key, train.count, curvature=kind)
    notes = {"dataset_version": bench.require("dataset").number}
    return Whole(arrays, attrs, info, train.coordinates, notes=notes)


def _sum(bench: Workbench, kind: str, objective: Objective, rows) -> torch.Tensor:
    curvature = KINDS[kind](objective, rows, batch_size=bench.settings.compute.batch_size)
    return curvature.dense_sum(rows)


def _updated(
    bench: Workbench, kind: str, train: Axis, objective: Objective, settings_key: str
) -> tuple[torch.Tensor | None, int]:
    """The sum over rows from the stored one and the rows that differ, and how many those are."""
    stored = bench.undamaged(kind)
    if stored is None or stored.attrs.get("settings_key") != settings_key:
        return None, 0
    seen = bench.axis_of(stored, "train")
    changes = row_changes(bench, stored, seen.fingerprint, train)
    if changes is None:
        return None, 0
    total = torch.from_numpy(stored.read(kind)).to(bench.device).mul_(seen.count)
    for sign, rows in changes.signed(bench):
        total.add_(_sum(bench, kind, objective, rows), alpha=sign)
    return total, len(changes)
