"""The training rows of a stored study that are most likely mislabelled."""

from pathlib import Path

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import Axis
from influence_dag.errors import StoreError
from influence_dag.query.reopened import workbench_of
from influence_dag.query.results import StudyResults, open_study


def suspects(
    study: StudyResults | str | Path,
    k: int = 20,
    *,
    method: str | None = None,
    damping: float | None = None,
) -> xr.Dataset:
    r"""The `k` training rows with the largest self-influence, largest first, dim `train`.

    A row on which the model leans for its own sake alone, $\nabla L_i^\top (H + \lambda I)^{-1}
    \nabla L_i$ being large, is either mislabelled or unlike all others: look at these first.

    Variables: `self_influence`; `loss` of the row at the stored θ; for a classifier `predicted`,
    the class that the model would give it. Coordinates: `train` (ids) and `train_label`. `method`
    defaults to the study's first that has self-influences, `damping` to the last of a sweep.
    `idag.suspects(...).to_dataframe()` is a table.

    The losses come from the stored model, which needs the study's code (see `open_study`). Raises
    `StoreError` when no self-influence is stored or `damping` is none of those stored.

        >>> idag.suspects("data/store/digits", 5)  # doctest: +SKIP
    """
    results = study if isinstance(study, StudyResults) else open_study(study)
    scores = results.self_influence(method=method, damping=damping)
    if k < 1:
        raise StoreError(f"k is {k}; ask for at least one row")
    order = np.argsort(-np.nan_to_num(scores.values, nan=-np.inf), kind="stable")[:k]
    first = scores.isel(train=order)
    seen = {name: ("train", values) for name, values in _seen_by_model(results, first).items()}
    return first.to_dataset(name="self_influence").assign(seen).assign_attrs(first.attrs)


def _seen_by_model(results: StudyResults, rows: xr.DataArray) -> dict[str, np.ndarray]:
    """Loss, and class for a classifier, of each row at the stored θ."""
    import torch

    from influence_dag.stages.reading import load_objective, load_rows

    bench = workbench_of(results.store, rows.attrs["method"], results.project)
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
