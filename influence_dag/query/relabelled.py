"""Influences of training rows as they would be with other labels, computed on demand."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from influence_dag.datasets.neighbours import have_classes
from influence_dag.errors import StoreError
from influence_dag.query.holes import without_holes
from influence_dag.query.reopened import check_influences, workbench_of
from influence_dag.stages import naming, reading
from influence_dag.stages.blocks import pieces
from influence_dag.stages.dampings import DAMPING, DampingAxis
from influence_dag.store import Store
from influence_dag.study.torch_modes import study_modes

if TYPE_CHECKING:
    from influence_dag.gradients.per_sample import Gradients
    from influence_dag.objective.objective import Objective, Rows
    from influence_dag.stages.workbench import Workbench
    from influence_dag.store import Version

Labels = Mapping[Any, str | float]


@study_modes()
def relabelled_influences(
    store: Store, method: str, labels: Labels, project: Path | None = None
) -> xr.DataArray:
    r"""`s_testᵀ ∇L((x_i, y'_i))` with new labels `y'` of some training rows, `(…, test, train)`.

    Relabelling row i changes the loss of test row j by about $(I_{ji} - I'_{ji}) / n$, I being the
    stored influence and I' the one from here. Labels are classes by their name (or number), or
    numbers of a regression. Raises `StoreError` for a row that there is not, and for a label that
    is no class.
    """
    bench = workbench_of(store, method, project)
    check_influences(bench, method, rows="dataset")
    labels = {str(name): label for name, label in labels.items()}  # ids may be whole numbers
    names, gradients = _gradients(bench, method, labels)
    axis = DampingAxis.of(bench, method)
    values = _products(bench, method, gradients, (len(axis), len(names)))
    axes = (*bench.axis(naming.factors(method), "test").coordinates, axis.coordinate)
    coordinates: dict[str, Any] = {item.name: (item.dims, item.values) for item in axes}
    coordinates["train"] = ("train", np.array(names, np.dtypes.StringDType()))
    about = {"long_name": "influences of training rows with the labels that were asked for"}
    variable = ((DAMPING, "test", "train"), values, about)
    dataset = xr.Dataset({"relabelled_influences": variable}, coordinates)
    if len(axis) == 1:
        dataset = dataset.squeeze(DAMPING, drop=True)
    return without_holes(dataset)["relabelled_influences"]


def _gradients(bench: "Workbench", method: str, labels: Labels) -> "tuple[list[str], Gradients]":
    """The rows' ids, and their gradients under the new labels, in the order of their slots."""
    import torch

    from influence_dag.gradients.per_sample import per_sample_gradients
    from influence_dag.objective.objective import Rows

    train = bench.axis("dataset", "train")
    slots = _slots(train.ids.tolist(), train.valid, labels)
    rows, names = reading.load_rows(bench, train, slots), train.ids[slots].tolist()
    if rows.y.ndim != 1:
        raise StoreError("rows whose target is not one number cannot be relabelled")
    objective = reading.load_objective(bench)
    targets = _targets(bench, method, names, labels, partial(_outputs, objective, rows))
    whole = all(float(each).is_integer() for each in targets)  # else an amount, as others are not
    y = torch.tensor(targets, dtype=rows.y.dtype if whole else bench.dtype, device=rows.y.device)
    return names, per_sample_gradients(objective, Rows(rows.x, y, rows.weights))


def _products(
    bench: "Workbench", method: str, gradients: "Gradients", sizes: tuple[int, int]
) -> np.ndarray:
    """The factors of every test row times these gradients, for each λ."""
    from influence_dag.influence.upweighting import influences

    factors = bench.require(naming.factors(method))
    variable = factors.variables["influence_factors"]
    dampings, rows = sizes
    values = np.full((dampings, variable.shape[-2], rows), np.nan)
    for k, found in enumerate(values):
        for tests in pieces(0, variable.shape[-2], variable.chunks[-2]):
            s = reading.load_factors(bench, method, tests, k)
            found[tests] = influences(s, gradients).cpu().numpy()
    return values


def _slots(ids: list[str], valid: np.ndarray, labels: Labels) -> np.ndarray:
    places = {name: slot for slot, name in enumerate(ids) if valid[slot]}
    if unknown := [name for name in labels if name not in places]:
        raise StoreError(f"no training row {unknown[0]!r:.200} ({len(unknown)} such)")
    if not labels:
        raise StoreError("no row is named; give new labels by training row's id")
    return np.sort(np.array([places[name] for name in labels], np.int64))


def _outputs(objective: "Objective", rows: "Rows") -> int:
    """The classes that the model tells apart."""
    return objective.outputs(objective.params, rows[:1].x).shape[1]


def _targets(
    bench: "Workbench",
    method: str,
    names: list[str],
    labels: Labels,
    outputs: Callable[[], int],
) -> list[float]:
    """Labels as the loss takes them: numbers of classes, or numbers.

    Of cross-entropy each of the model's `outputs` is a class, whether or not a row has it.
    """
    dataset = bench.require("dataset")
    classes = list(map(str, dataset.attrs.get("classes", ())))
    if classes:
        if unknown := [name for name in names if str(labels[name]) not in classes]:
            raise StoreError(
                f"{unknown[0]}: {labels[unknown[0]]!r:.80} is none of the classes "
                f"{', '.join(classes)}"
            )
        return [classes.index(str(labels[name])) for name in names]
    are_classes = have_classes(dataset, bench.settings.model.loss, _predicted(bench, method))
    most = _last_class(bench, dataset, outputs) if are_classes else None
    return [_number(name, labels[name], most) for name in names]


def _last_class(bench: "Workbench", dataset: "Version", outputs: Callable[[], int]) -> int:
    """The largest number of a class; of a loss of the study's own, among all rows' labels."""
    loss = bench.settings.model.loss
    if loss in ("cross_entropy", "bce_with_logits"):
        return outputs() - 1 if loss == "cross_entropy" else 1
    return max(int(dataset.read(f"{split}_y").max()) for split in ("train", "test"))


def _predicted(bench: "Workbench", method: str) -> np.ndarray | None:
    """What the model says of the training rows, where that is stored."""
    summary = bench.store.current(naming.summary(method))
    if summary is None or "train_predicted" not in summary.variables:
        return None
    return summary.read("train_predicted")


def _number(name: str, label: str | float, most: int | None) -> float:
    """A label as a number; where there are classes, one of them."""
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = np.nan
    if np.isfinite(value) and (most is None or (value % 1 == 0 and 0 <= value <= most)):
        return value if most is None else int(value)
    wanted = "a number" if most is None else f"a class, a whole number from 0 to {most}"
    raise StoreError(f"{name}: the label {label!r:.80} is not {wanted}")
