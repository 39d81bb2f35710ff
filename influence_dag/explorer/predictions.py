"""What the model said of each row, in the words of the labels; how suspicious its label is."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets import neighbours
from influence_dag.datasets.neighbours import are_whole, have_classes
from influence_dag.datasets.slots import Split, shown_label
from influence_dag.explorer.opened import View
from influence_dag.suspicion import Evidence, combined_suspicion

MOST_LABELS = 200  # distinct ones that are still offered as a choice
AFFORDABLE = 5e9  # multiplications of all distances, a third of a second; once a version


class Predictions:
    """Labels and predictions of a view's rows in the same words, right or wrong."""

    def __init__(self, view: View, split: Split):
        self.rows = view.split(split)
        dataset = view.opened.current("dataset")
        assert dataset is not None
        self.classes = list(dataset.attrs.get("classes", ()))
        values = view.said(f"{split}_predicted", split)
        self.values = np.full(len(self.rows), np.nan) if values is None else values
        loss, known = view.influences.attrs.get("loss"), view.said("train_predicted", "train")
        named = loss in ("cross_entropy", "bce_with_logits")  # also of 0.0 and 1.0
        self.are_classes = named or have_classes(dataset, loss, known)
        self._says_classes = self.are_classes and are_whole(self.values)

    def label(self, position: int) -> str | None:
        labels = self.rows.labels
        return None if labels is None else shown_label(labels[position])

    def predicted(self, position: int) -> str | None:
        value = self.values[position]
        if not np.isfinite(value):
            return None
        if not self._says_classes:
            return f"{value:.4g}"
        place = int(value)
        return str(self.classes[place]) if place < len(self.classes) else str(place)

    @cached_property
    def wrong(self) -> NDArray[np.bool_] | None:
        """Of each row whether the class is another than its label; None of numbers."""
        if not self._says_classes or self.rows.labels is None:
            return None
        labels = self.rows.labels
        if self.classes:
            places = {name: place for place, name in enumerate(map(str, self.classes))}
            known = np.array([places.get(str(each), -1) for each in labels.tolist()])
        else:
            known = labels.astype(np.float64)
        return np.isfinite(self.values) & (known != self.values)


def predictions(view: View, split: Split) -> Predictions:
    """Those of a view, put together once."""
    if ("predictions", split) not in view.known:
        view.known["predictions", split] = Predictions(view, split)
    return view.known["predictions", split]


def is_label(value: Any, text: str) -> bool:
    """Whether a stored label is what a person wrote: numbers by their value.

    >>> is_label(3, "3"), is_label(0.5, "0.50"), is_label("b", "a"), is_label(2, "two")
    (True, True, False, False)
    """
    if isinstance(value, str):
        return value == text
    try:
        return float(value) == float(text)
    except ValueError:
        return False


def labels_of(view: View, split: Split) -> list[str]:
    """The distinct labels, where they are few; numbers of a regression are no classes."""
    labels = view.split(split).labels
    if labels is None or labels.dtype.kind == "f" or not predictions(view, split).are_classes:
        return []
    distinct = sorted(set(labels.tolist()))
    return [shown_label(each) for each in distinct] if len(distinct) <= MOST_LABELS else []


def disagreement(view: View) -> NDArray[np.float64] | None:
    """What the nearest other rows say against each row's label; None where that is not looked at.

    Of the rows as the current dataset has them; a row that is no more in it, or is another, is NaN.
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
    rows = view.opened.rows(dataset, "train")
    by_slot[rows.slots], view.known["votes"] = neighbours.stored_neighbours(
        dataset, are_classes=predictions(view, "train").are_classes
    )
    return view.placed(by_slot, rows)


def suspicion(view: View) -> NDArray[np.float64] | None:
    """All of it as one number a row, large where the label is suspect."""
    if "suspicion" not in view.known:
        stored = {"loss": "train_loss", "self_influence": "self_influence"}
        said = {name: view.said(stored[name], "train") for name in stored}
        said["neighbour_disagreement"] = disagreement(view)
        known = {name: values for name, values in said.items() if values is not None}
        voted = _evidence(view) if "neighbour_disagreement" in known else None
        view.known["suspicion"] = combined_suspicion(known, voted) if known else None
    return view.known["suspicion"]


def _evidence(view: View) -> Evidence | None:
    """What neighbours vote, where all rows are as the current dataset has them."""
    dataset = view.opened.current("dataset")
    if dataset is None:
        return None
    rows = view.opened.rows(dataset, "train")
    if rows.ids != view.train.ids or (rows.keys != view.train.keys).any():
        return None
    voted, seen = view.known.get("votes"), predictions(view, "test")
    if voted is None or seen.wrong is None or len(seen.wrong) != len(voted.right):
        return None
    return voted.evidence(~seen.wrong)


def ranks(view: View) -> NDArray[np.int64] | None:
    """1 for the most suspicious row, and so on."""
    if "ranks" not in view.known:
        values = suspicion(view)
        view.known["ranks"] = None if values is None else _ranks(values)
    return view.known["ranks"]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return np.argsort(order) + 1
