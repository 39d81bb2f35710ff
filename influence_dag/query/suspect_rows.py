"""Training rows by self-influence, with what the model makes of each."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import Axis
from influence_dag.errors import StoreError
from influence_dag.query.reopened import workbench_of

if TYPE_CHECKING:
    from influence_dag.query.questions import Questions


def suspect_rows(
    study: "Questions", k: int, *, method: str | None, damping: float | None
) -> xr.Dataset:
    """The `k` rows with the largest self-influence; see `influence_dag.suspects`."""
    scores = study.self_influence(method=method, damping=damping)
    if k < 1:
        raise StoreError(f"k is {k}; ask for at least one row")
    order = np.argsort(-np.nan_to_num(scores.values, nan=-np.inf), kind="stable")[:k]
    first = scores.isel(train=order)
    seen = {name: ("train", values) for name, values in _seen_by_model(study, first).items()}
    return first.to_dataset(name="self_influence").assign(seen).assign_attrs(first.attrs)


def _seen_by_model(study: "Questions", rows: xr.DataArray) -> dict[str, np.ndarray]:
    """Loss, and class for a classifier, of each row at the stored θ."""
    import torch

    from influence_dag.stages.reading import load_objective, load_rows

    bench = workbench_of(study.store, rows.attrs["method"], study.project)
    axis = Axis.read(bench.require("dataset"), "train")
    slots = {str(axis.ids[slot]): slot for slot in axis.slots}
    missing = [str(row) for row in rows.train.values if str(row) not in slots]
    if missing:
        raise StoreError(
            f"{len(missing)} rows ({missing[0]}, …) are no longer in the dataset; materialise "
            "the study again"
        )
    wanted = np.array([slots[str(row)] for row in rows.train.values])
    in_order = torch.from_numpy(np.argsort(np.argsort(wanted)))  # rows are read in slot order
    chosen = load_rows(bench, axis, np.sort(wanted))[in_order.to(bench.device)]
    objective = load_objective(bench)
    with torch.no_grad():
        outputs = objective.outputs(objective.params, chosen.x)
        losses = objective.loss(outputs, chosen.y)
    seen = {"loss": losses.numpy(force=True)}
    if outputs.ndim == 2 and outputs.shape[1] > 1 and not chosen.y.is_floating_point():
        predicted = outputs.argmax(dim=1).numpy(force=True)
        names = np.array(bench.require("dataset").attrs.get("classes", ()))
        seen["predicted"] = names[predicted] if len(names) else predicted
    return seen
