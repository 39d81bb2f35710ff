"""How suspicious each training row's label is, from what is stored: neighbours and model."""

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets import neighbours
from influence_dag.explorer.opened import View, once
from influence_dag.explorer.predictions import predictions
from influence_dag.suspicion import Evidence, Votes, combined_suspicion

AFFORDABLE = 5e9  # multiplications of all distances, a third of a second; once a version


def disagreement(view: View) -> NDArray[np.float64] | None:
    """What the nearest other rows say against each row's label; None where that is not looked at.

    Of the rows as the current dataset has them; a row that is no more in it, is another, or has no
    label is NaN.
    """
    found = _neighbours(view)
    return found and found[0]


@once
def _neighbours(view: View) -> tuple[NDArray[np.float64], Votes | None] | None:
    """The disagreement of each row's neighbours, and their votes where labels are classes."""
    dataset = view.opened.version("dataset")
    if not neighbours.has_points(dataset) or neighbours.cost(dataset) > AFFORDABLE:
        return None
    by_slot = np.full(dataset.variables["train_y"].shape[0], np.nan)
    are_classes = predictions(view, "train").are_classes
    slots = neighbours.labelled(dataset, "train", are_classes=are_classes)
    if not len(slots):
        return None
    by_slot[slots], voted = neighbours.stored_neighbours(dataset, are_classes=are_classes)
    return view.placed(by_slot, view.opened.rows(dataset, "train")), voted


@once
def suspicion(view: View) -> NDArray[np.float64] | None:
    """All of it as one number a row, large where the label is suspect; NaN where there is none."""
    said = {
        "loss": view.said("train_loss", "train"),
        "self_influence": view.said("self_influence", "train"),
        "neighbour_disagreement": disagreement(view),
    }
    rows = predictions(view, "train").labelled
    known = {name: values[rows] for name, values in said.items() if values is not None}
    if not known:
        return None
    found = np.full(len(rows), np.nan)
    found[rows] = combined_suspicion(known, _evidence(view))
    return found


def _evidence(view: View) -> Evidence | None:
    """What neighbours vote, where all rows are as the current dataset has them."""
    _, voted = _neighbours(view) or (None, None)
    rows = view.opened.rows(view.opened.version("dataset"), "train")
    if voted is None or rows.ids != view.train.ids or (rows.keys != view.train.keys).any():
        return None
    seen = predictions(view, "test")
    if seen.wrong is None or int(seen.labelled.sum()) != len(voted.right):
        return None
    return voted.evidence(~seen.wrong[seen.labelled])


@once
def ranks(view: View) -> NDArray[np.int64] | None:
    """1 for the most suspicious row, and so on."""
    if (values := suspicion(view)) is None:
        return None
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return np.argsort(order) + 1
