"""How suspicious each training row's label is, from what is stored: neighbours and model."""

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets import neighbours
from influence_dag.explorer.opened import View
from influence_dag.explorer.predictions import predictions
from influence_dag.suspicion import Evidence, combined_suspicion

AFFORDABLE = 5e9  # multiplications of all distances, a third of a second; once a version


def disagreement(view: View) -> NDArray[np.float64] | None:
    """What the nearest other rows say against each row's label; None where that is not looked at.

    Of the rows as the current dataset has them; a row that is no more in it, is another, or has no
    label is NaN.
    """
    if "disagreement" not in view.known:
        view.known["disagreement"] = _disagreement(view)
    return view.known["disagreement"]


def _disagreement(view: View) -> NDArray[np.float64] | None:
    dataset = view.opened.current("dataset")
    if dataset is None or not neighbours.has_points(dataset):
        return None
    if neighbours.cost(dataset) > AFFORDABLE:
        return None
    by_slot = np.full(dataset.variables["train_y"].shape[0], np.nan)
    are_classes = predictions(view, "train").are_classes
    slots = neighbours.labelled(dataset, "train", are_classes=are_classes)
    if not len(slots):
        return None
    found = neighbours.stored_neighbours(dataset, are_classes=are_classes)
    by_slot[slots], view.known["votes"] = found
    return view.placed(by_slot, view.opened.rows(dataset, "train"))


def suspicion(view: View) -> NDArray[np.float64] | None:
    """All of it as one number a row, large where the label is suspect; NaN where there is none."""
    if "suspicion" not in view.known:
        stored = {"loss": "train_loss", "self_influence": "self_influence"}
        said = {name: view.said(stored[name], "train") for name in stored}
        said["neighbour_disagreement"] = disagreement(view)
        rows = predictions(view, "train").labelled
        known = {name: values[rows] for name, values in said.items() if values is not None}
        voted = _evidence(view) if "neighbour_disagreement" in known else None
        view.known["suspicion"] = (
            _scattered(combined_suspicion(known, voted), rows) if known else None
        )
    return view.known["suspicion"]


def _scattered(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values of some rows among all."""
    found = np.full(len(rows), np.nan)
    found[rows] = values
    return found


def _evidence(view: View) -> Evidence | None:
    """What neighbours vote, where all rows are as the current dataset has them."""
    dataset = view.opened.current("dataset")
    if dataset is None:
        return None
    rows = view.opened.rows(dataset, "train")
    if rows.ids != view.train.ids or (rows.keys != view.train.keys).any():
        return None
    voted, seen = view.known.get("votes"), predictions(view, "test")
    if voted is None or seen.wrong is None or int(seen.labelled.sum()) != len(voted.right):
        return None
    return voted.evidence(~seen.wrong[seen.labelled])


def ranks(view: View) -> NDArray[np.int64] | None:
    """1 for the most suspicious row, and so on."""
    if "ranks" not in view.known:
        values = suspicion(view)
        view.known["ranks"] = None if values is None else _ranks(values)
    return view.known["ranks"]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return np.argsort(order) + 1
