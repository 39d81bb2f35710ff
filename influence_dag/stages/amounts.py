"""Whether whole targets are amounts (ages, counts), of which none is mistaken for another."""

import torch

from influence_dag.datasets.neighbours import have_classes
from influence_dag.errors import StudyError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages.seen import predictions
from influence_dag.stages.workbench import Workbench

AT_ONCE = 1_024  # rows whose outputs are in memory


def are_amounts(bench: Workbench, objective: Objective, train: Rows) -> bool:
    """Whether whole numbers that are targets are no classes (`have_classes`).

    Two values are two classes, whatever is made of them.
    """
    if train.y.is_floating_point() or train.y.ndim != 1 or len(train.y.unique()) <= 2:
        return False
    loss = bench.settings.model.loss
    predicted = [
        predictions(objective.outputs(objective.params, batch.x), batch.y, loss)
        for batch in train.batches(AT_ONCE)
    ]
    known = torch.cat(predicted).double().numpy(force=True)
    return not have_classes(bench.require("dataset"), loss, known)


def refuse_amounts(bench: Workbench, objective: Objective, train: Rows) -> None:
    """Raise `StudyError` where there are no classes of which one could be taken for another."""
    if not are_amounts(bench, objective, train):
        return
    low, high = int(train.y.min()), int(train.y.max())
    raise StudyError(
        f"validation.label_errors replaces classes by others, and with model.loss "
        f"{bench.settings.model.loss} the targets are amounts: {len(train.y.unique())} whole "
        f"numbers from {low} to {high}; leave validation.label_errors away, or give the model a "
        "loss of classes (cross_entropy)"
    )
