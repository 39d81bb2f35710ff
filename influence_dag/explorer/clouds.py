"""Many rows at once: training rows by loss and self-influence, one row by two sets of numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.slots import Split
from influence_dag.errors import StoreError
from influence_dag.explorer.content import Contents
from influence_dag.explorer.numbers import POINTS, agreement, number, numbers
from influence_dag.explorer.opened import View
from influence_dag.explorer.predictions import predictions
from influence_dag.explorer.shown import one


def scatter(view: View) -> dict[str, Any]:
    """Self-influence against loss of the training rows: the extreme ones, and some of the rest."""
    own, loss = view.said("self_influence", "train"), view.said("train_loss", "train")
    if own is None or loss is None:
        raise StoreError(
            f"self-influences or losses of {view.method} are not stored; set summary: "
            "{self_influence: true} in the study and materialise it again"
        )
    seen = predictions(view, "train")
    wrong = seen.wrong
    places = np.flatnonzero(np.isfinite(own) & np.isfinite(loss))
    largest = len(places)
    if len(places) > POINTS:
        largest = POINTS // 3
        ranked = places[np.argsort(-own[places], kind="stable")]
        rest = np.random.default_rng(0).choice(ranked[largest:], POINTS - largest, False)
        places = np.concatenate([ranked[:largest], np.sort(rest)])
    rows = view.train
    return {
        "ids": [rows.ids[place] for place in places.tolist()],
        "labels": [seen.label(place) for place in places.tolist()],
        "self_influence": numbers(own[places]),
        "loss": numbers(loss[places]),
        "wrong": None if wrong is None else wrong[places].tolist(),
        "shown": len(places),
        "largest": largest,
        "all": len(rows),
    }


def beside(view: View, other: View, contents: Contents, split: Split, name: str) -> dict[str, Any]:
    """A row's influences by two sets of numbers: how they agree, and the other's strongest."""
    mine, theirs = _of(view, split, name), _of(other, split, name)
    across: Split = "train" if split == "test" else "test"
    rows, others = view.split(across), other.split(across)
    places = others.places(rows.ids)
    both = (places >= 0) & np.isfinite(mine)
    both &= np.isfinite(np.where(places >= 0, theirs[np.maximum(places, 0)], np.nan))
    x, y = mine[both], theirs[places[both]]
    step = max(1, -(-len(x) // POINTS))
    points = [[number(a), number(b)] for a, b in zip(x[::step], y[::step], strict=True)]
    return {**agreement(x, y), "points": points, "other": one(other, contents, split, name, {})}


def _of(view: View, split: Split, name: str) -> NDArray[np.float64]:
    place = view.split(split).position(name)
    return view.of_test(place) if split == "test" else view.of_train(place)
