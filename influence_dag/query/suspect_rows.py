"""Training rows by what speaks against their labels, with what the model makes of each."""

from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from influence_dag.datasets import neighbours as stored
from influence_dag.datasets.slots import Axis, Split, dataset_of
from influence_dag.errors import StoreError
from influence_dag.query.reopened import workbench_of
from influence_dag.query.rows import check_k
from influence_dag.stages import naming
from influence_dag.stages.blocks import pieces
from influence_dag.store import Version
from influence_dag.study.torch_modes import study_modes
from influence_dag.suspicion import (
    NEIGHBOURS,
    SUSPICIONS,
    UNLABELLED,
    Evidence,
    Space,
    are_labelled,
    combined_suspicion,
    knn_shapley,
    nearest,
    neighbour_disagreement,
    votes,
)
from influence_dag.texts import did_you_mean

if TYPE_CHECKING:
    from influence_dag.query.questions import Questions
    from influence_dag.stages.workbench import Workbench
    from influence_dag.validation.out_of_fold import OutOfFold

BLOCK = 2_000  # rows whose representations are made at a time


@dataclass(frozen=True)
class Asked:
    """What the rows are ranked by, and what it takes."""

    by: str = "combined"
    neighbours: int = NEIGHBOURS
    space: Space = "auto"
    folds: int = 0

    def __post_init__(self) -> None:
        if self.by not in SUSPICIONS:
            near = did_you_mean(self.by, list(SUSPICIONS))
            raise StoreError(f"no ranking {self.by!r}{near}; there are {', '.join(SUSPICIONS)}")
        if self.space not in get_args(Space):
            known = ", ".join(get_args(Space))
            raise StoreError(f"space={self.space!r} is unknown; choose one of {known}")
        are_whole = isinstance(self.neighbours, Integral) and isinstance(self.folds, Integral)
        if not are_whole or self.neighbours < 0 or self.folds < 0 or self.folds == 1:
            raise StoreError(
                f"neighbours={self.neighbours!r}, folds={self.folds!r}: take whole numbers, "
                "neighbours 0 (none) or more, folds 0 (none) or 2 and more"
            )
        if not self.neighbours and self.space != "auto":
            raise StoreError(
                f"space={self.space!r} is where neighbours are looked for, and neighbours=0 looks "
                "for none; leave one out"
            )


@study_modes()
def suspect_rows(
    study: "Questions", k: int, *, method: str | None, damping: float | None, asked: Asked
) -> xr.Dataset:
    """The `k` most suspicious rows; see `influence_dag.suspects`."""
    check_k(k)
    scores = study.self_influence(method=method, damping=damping)
    rows = _Rows(study, scores, asked)
    columns = rows.said | rows.of_neighbours() | rows.out_of_fold()
    rankings = {n: -v if n == "knn_shapley" else v for n, v in columns.items() if n in SUSPICIONS}
    columns["combined"] = rankings["combined"] = combined_suspicion(rankings, rows.evidence())
    if asked.by not in rankings:
        raise StoreError(_missing(asked, has_neighbours="neighbour_disagreement" in rankings))
    order = np.argsort(-np.nan_to_num(rankings[asked.by], nan=-np.inf), kind="stable")[:k]
    first = rows.scores.isel(train=order)
    values = {
        name: ("train", column[order], {"long_name": SUSPICIONS.get(name, "predicted class")})
        for name, column in columns.items()
        if name != "self_influence"
    }
    ranked = first.to_dataset(name="self_influence").assign(values)
    return ranked.assign_attrs(first.attrs | {"ranked_by": asked.by})


def _missing(asked: Asked, *, has_neighbours: bool) -> str:
    by = asked.by
    if by == "out_of_fold_loss":
        return "no out-of-fold losses without folds; ask for folds=5"
    if not asked.neighbours:
        return f"no {by} without neighbours; ask for neighbours={NEIGHBOURS}"
    if has_neighbours:
        return f"no {by}: it needs classes, and test rows that have a label; take another ranking"
    return (
        f"no {by}: neighbours are looked for among inputs that are one array of real numbers, up "
        f"to {stored.MOST_NUMBERS:,} of them; take space='penultimate', or another ranking"
    )


class _Rows:
    """The training rows that have self-influences and labels, and what else is known of them."""

    def __init__(self, study: "Questions", scores: xr.DataArray, asked: Asked):
        self.study, self.method, self.asked = study, scores.attrs["method"], asked
        self.dataset: Version = study.store.version("dataset")
        self.kept = self._labelled(scores)
        if not len(self.kept):
            raise StoreError(
                f"{study.store.address}: no training row with a self-influence has a label "
                f"(a class of {UNLABELLED} is none): there is none to suspect"
            )
        self.scores = scores.isel(train=self.kept)

    def _labelled(self, scores: xr.DataArray) -> NDArray[np.int64]:
        """Which of the rows have a label that could be wrong."""
        if not self.have_classes or "train_label" not in scores.coords:
            return np.arange(scores.size)
        return np.flatnonzero(are_labelled(scores.train_label.values))

    @cached_property
    def said(self) -> dict[str, NDArray]:
        """What is stored of each row: self-influence, loss, and of a classifier the prediction."""
        summary = self.study.open(naming.summary(self.method))
        if "train_loss" not in summary:
            raise StoreError(
                f"the summary of {self.method} holds no losses of training rows; materialise the "
                "study again"
            )
        loss = summary["train_loss"].values[self.kept]
        said = {"self_influence": self.scores.values, "loss": loss}
        predicted = summary["train_predicted"].values[self.kept]
        numbered = np.isfinite(predicted).all() and stored.are_whole(predicted)
        if self.have_classes and numbered and len(predicted):
            said["predicted"] = self._in_words(predicted)
        return said

    @cached_property
    def have_classes(self) -> bool:
        """Whether labels are classes, rather than numbers of a regression."""
        summary = self.study.store.version(naming.summary(self.method))
        predicted = self.study.open(naming.summary(self.method)).get("train_predicted")
        known = None if predicted is None else predicted.values
        return stored.have_classes(self.dataset, summary.attrs.get("loss"), known)

    def _in_words(self, predicted: NDArray) -> NDArray:
        """Names of the classes in the order that the dataset had for the model that predicted."""
        store, classes = self.study.store, predicted.astype(np.int64)
        summary = store.version(naming.summary(self.method))
        dataset = dataset_of(summary, reversed(store.versions("dataset")))
        names = np.array(dataset.attrs.get("classes", ()) if dataset else ())
        return names[classes] if len(names) else classes

    @cached_property
    def slots(self) -> dict[Split, NDArray[np.int64]]:
        """Of the dataset's rows that have labels."""
        return {
            split: stored.labelled(self.dataset, split, are_classes=self.have_classes)
            for split in ("train", "test")
        }

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Of each row its position among the dataset's training rows that have labels."""
        ids = Axis.read(self.dataset, "train").ids
        known = {str(ids[slot]): place for place, slot in enumerate(self.slots["train"])}
        missing = [str(row) for row in self.scores.train.values if str(row) not in known]
        if missing:
            raise StoreError(
                f"{len(missing)} rows ({missing[0]}, …) are no longer in the dataset, or have no "
                "label there; materialise the study again"
            )
        return np.array([known[str(row)] for row in self.scores.train.values], np.int64)

    @cached_property
    def bench(self) -> "Workbench":
        """The study at work: its code is needed from here on."""
        return workbench_of(self.study.store, self.method, self.study.project)

    @cached_property
    def labels(self) -> list[NDArray]:
        """Classes or numbers of the training and the test rows."""
        return [
            stored.targets(self.dataset, *each, are_classes=self.have_classes)
            for each in self.slots.items()
        ]

    @cached_property
    def points(self) -> tuple[NDArray, NDArray]:
        """Training and test rows that have labels, as points."""
        train = self._points("train")
        return train, self._points("test") if len(self.slots["test"]) else train[:0]

    def of_neighbours(self) -> dict[str, NDArray]:
        """Disagreement of the neighbours and, for classes, KNN-Shapley values on the test rows."""
        if not self._has_points:
            return {}
        (train, test), labels = self.points, self.labels
        of_rows = neighbour_disagreement(train, labels[0], near=self._near)
        scores = {"neighbour_disagreement": of_rows[self.places]}
        if labels[0].dtype.kind == "i" and len(test):
            values = knn_shapley(train, labels[0], test, labels[1], k=self.asked.neighbours)
            scores["knn_shapley"] = values[self.places]
        return scores

    def evidence(self) -> Evidence | None:
        """What neighbours, and models that have not seen the rows, take the rows' classes to be."""
        if not self._has_points or self.labels[0].dtype.kind != "i":
            return None
        (train, test), labels, k = self.points, self.labels, self.asked.neighbours
        voted = votes(train, labels[0], test, labels[1], k=k, near=self._near)
        unseen = self._unseen.classes if self.asked.folds else None
        return voted and voted.evidence(self._right, unseen).of_rows(self.places)

    @cached_property
    def _near(self) -> NDArray[np.int64]:
        return nearest(self.points[0], self.asked.neighbours)

    @property
    def _right(self) -> NDArray[np.bool_] | None:
        """Whether the model is right about each test row; None where it has changed since.

        And where no test row has a label.
        """
        artifact = naming.summary(self.method)
        seen, now = (
            Axis.read(version, "test").fingerprint
            for version in (self.study.store.version(artifact), self.dataset)
        )
        if seen != now or "predicted" not in self.said or not len(self.slots["test"]):
            return None
        predicted = self.study.open(artifact)["test_predicted"].values
        among = np.isin(Axis.read(self.dataset, "test").slots, self.slots["test"])
        return predicted[among].astype(np.int64) == self.labels[1]

    @property
    def _has_points(self) -> bool:
        if not self.asked.neighbours:
            return False
        there = self.asked.space == "penultimate" or stored.has_points(self.dataset)
        if not there and self.asked.space == "input":
            asked = replace(self.asked, by="neighbour_disagreement")
            raise StoreError(_missing(asked, has_neighbours=False))
        return there

    def _points(self, split: Split) -> NDArray:
        if self.asked.space != "penultimate":
            return stored.points(self.dataset, split, self.slots[split])
        from influence_dag.stages.reading import load_objective, load_rows
        from influence_dag.validation.label_errors import points_of

        axis, objective = Axis.read(self.dataset, split), load_objective(self.bench)
        slots = self.slots[split]
        blocks = (slots[some] for some in pieces(0, len(slots), BLOCK))
        rows = (load_rows(self.bench, axis, few) for few in blocks)
        points = (points_of(objective, few, "penultimate") for few in rows)
        return np.concatenate([part for part in points if part is not None])

    def out_of_fold(self) -> dict[str, NDArray]:
        if not self.asked.folds:
            return {}
        among = np.searchsorted(Axis.read(self.dataset, "train").slots, self.slots["train"])
        return {"out_of_fold_loss": self._unseen.losses[among[self.places]]}

    @cached_property
    def _unseen(self) -> "OutOfFold":
        """Of all rows, unlabelled ones too; of classes only where there are none of these."""
        from influence_dag.stages.refits import unseen

        return unseen(self.bench, self.asked.folds)
