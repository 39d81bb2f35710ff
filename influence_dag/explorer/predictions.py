"""What the model said of each row, in the words of the labels; right or wrong."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.neighbours import are_whole, have_classes
from influence_dag.datasets.slots import Split, shown_label
from influence_dag.explorer.opened import View, once
from influence_dag.suspicion import are_labelled

MOST_LABELS = 200  # distinct ones that are still offered as a choice


class Predictions:
    """Labels and predictions of a view's rows in the same words, right or wrong."""

    def __init__(self, view: View, split: Split):
        self.rows = view.split(split)
        self.classes = list(view.dataset.attrs.get("classes", ())) if view.dataset else []
        values = view.said(f"{split}_predicted", split)
        self.values = np.full(len(self.rows), np.nan) if values is None else values
        loss, known = view.influences.attrs.get("loss"), view.said("train_predicted", "train")
        named = loss in ("cross_entropy", "bce_with_logits")  # also of 0.0 and 1.0
        self.are_classes = named or have_classes(view.opened.version("dataset"), loss, known)
        self._says_classes = self.are_classes and are_whole(self.values)

    def label(self, position: int) -> str | None:
        labels = self.rows.labels
        return None if labels is None else shown_label(labels[position])

    def predicted(self, position: int) -> str | None:
        value = self.values[position]
        if not np.isfinite(value):
            return None
        if not self._says_classes:
            return amount(value)
        place = int(value)
        return str(self.classes[place]) if place < len(self.classes) else str(place)

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a label; all where labels are no classes, or are not known."""
        labels = self.rows.labels
        if labels is None or not self.are_classes:
            return np.ones(len(self.rows), bool)
        return are_labelled(labels)

    @cached_property
    def wrong(self) -> NDArray[np.bool_] | None:
        """Of each row whether it has a label that is another class; None of numbers."""
        if not self._says_classes or self.rows.labels is None:
            return None
        labels = self.rows.labels
        if self.classes:
            places = {name: place for place, name in enumerate(map(str, self.classes))}
            known = np.array([places.get(str(each), -1) for each in labels.tolist()])
        elif labels.dtype.kind == "T":  # and what was the order of their classes nobody knows
            return None
        else:
            known = labels.astype(np.float64)
        return self.labelled & np.isfinite(self.values) & (known != self.values)


@once
def predictions(view: View, split: Split) -> Predictions:
    """Those of a view, put together once."""
    return Predictions(view, split)


def amount(value: float) -> str:
    """A predicted amount: four digits, and all before the point, beside labels as they are written.

    >>> amount(0.123456), amount(384123.4), amount(-2.5e-7), amount(3e20)
    ('0.1235', '384123', '-2.5e-07', '3e+20')
    """
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


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
