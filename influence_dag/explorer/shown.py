"""What the pages show, as plain values: tables of rows, one row, what agrees with what."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.slots import SPLITS, Split, shown_label
from influence_dag.explorer.content import Contents, Look, compared
from influence_dag.explorer.edited import project_of
from influence_dag.explorer.numbers import histogram, number
from influence_dag.explorer.opened import Opened, Rows, View
from influence_dag.explorer.predictions import Predictions, labels_of, predictions
from influence_dag.explorer.suspicion import disagreement, ranks, suspicion
from influence_dag.stages import dampings, naming

PAGE = 40  # rows of a table
STRONGEST = 8  # rows that help, and as many that harm
SNIPPET = 90  # characters of a kept column in a table
SORTS = {
    "test": ("loss", "total", "file"),
    "train": ("suspicion", "disagreement", "self_influence", "loss", "total", "file"),
}


@dataclass(frozen=True)
class Asked:
    """Which rows of a table: filters, order, page."""

    label: str | None = None
    wrong: bool = False
    search: str = ""
    sort: str = "loss"
    up: bool = False
    page: int = 0


def table(view: View, split: Split, asked: Asked, marks: dict[str, Any]) -> dict[str, Any]:
    """One page of a split's rows, filtered and sorted."""
    rows, seen, columns = view.split(split), predictions(view, split), _columns(view, split)
    order = _ordered(_filtered(rows, seen, asked), columns.get(asked.sort), asked)
    few = order[asked.page * PAGE : (asked.page + 1) * PAGE].tolist()
    return {
        "rows": [told(view, split, place, marks) | _snippets(rows, place) for place in few],
        "found": len(order),
        "all": len(rows),
        "page": asked.page,
        "pages": max(1, -(-len(order) // PAGE)),
        "size": PAGE,
        "wrong": None if seen.wrong is None else int(seen.wrong.sum()),
        "largest": {name: _largest(values) for name, values in columns.items()},
    }


def _columns(view: View, split: Split) -> dict[str, NDArray | None]:
    """What is stored of every row, by what the page calls it."""
    columns = {
        "loss": view.said(f"{split}_loss", split),
        "total": view.said(f"{split}_sum", split),
        "self_influence": None,
        "disagreement": None,
        "suspicion": None,
    }
    if split == "train":
        columns["self_influence"] = view.said("self_influence", split)
        columns |= {"disagreement": disagreement(view), "suspicion": suspicion(view)}
    return columns


def told(view: View, split: Split, place: int, marks: dict[str, Any]) -> dict[str, Any]:
    """What is known of one row, but for its content."""
    rows, seen = view.split(split), predictions(view, split)
    columns = _columns(view, split).items()
    return {
        "id": rows.ids[place],
        "split": split,
        "label": seen.label(place),
        "predicted": seen.predicted(place),
        "wrong": None if seen.wrong is None else bool(seen.wrong[place]),
        **{name: None if values is None else number(values[place]) for name, values in columns},
        "rank": _rank(view, place) if split == "train" else None,
        "mark": marks.get(rows.ids[place]) if split == "train" else None,
    }


def _rank(view: View, place: int) -> int | None:
    known = ranks(view)
    return None if known is None else int(known[place])


def _largest(values: NDArray | None) -> float | None:
    if values is None or not np.isfinite(values).any():
        return None
    return number(np.nanmax(np.abs(values)))


def _snippets(rows: Rows, place: int) -> dict[str, Any]:
    """The beginnings of the columns that travel along."""
    shown = ((name, shown_label(values[place])) for name, values in rows.kept.items())
    texts = ((name, " ".join(text.split())) for name, text in shown)
    cut = (
        {"name": name, "text": text if len(text) <= SNIPPET else text[: SNIPPET - 1] + "…"}
        for name, text in texts
    )
    return {"kept": list(cut)}


def _filtered(rows: Rows, seen: Predictions, asked: Asked) -> NDArray:
    """Places of the rows that are asked for."""
    keep = np.ones(len(rows), bool)
    if asked.label is not None and rows.labels is not None:
        values = rows.labels.tolist()
        keep &= np.array([shown_label(each) == asked.label for each in values], bool)
    if asked.wrong and seen.wrong is not None:
        keep &= seen.wrong
    for word in asked.search.casefold().split():
        keep &= np.strings.find(rows.searched, word) >= 0
    return np.flatnonzero(keep)


def _ordered(places: NDArray, values: NDArray | None, asked: Asked) -> NDArray:
    """Largest first, or smallest; rows of which nothing is known come last."""
    if values is None:
        return places
    mine = values[places]
    keys = np.where(np.isfinite(mine), mine if asked.up else -mine, np.inf)
    return places[np.argsort(keys, kind="stable")]


def study(opened: Opened) -> dict[str, Any]:
    """What there is to choose from: methods, dampings, versions, labels."""
    view = opened.view()
    attrs, measured = view.influences.attrs, view.influences.attrs.get("measurement")
    return {
        "name": opened.name,
        "address": opened.store.address,
        "methods": [_method(opened, name) for name in opened.results.methods],
        "measurement": None if measured == "the loss" else measured,
        "n": view.n,
        "labels": {split: labels_of(view, split) for split in SPLITS},
        "classes": predictions(view, "train").are_classes,
        "assumes": attrs.get("assumes"),
        "pictured": {split: _pictured(opened) for split in SPLITS},
        "has": {
            "losses": view.said("test_loss", "test") is not None,
            "self_influence": view.said("self_influence", "train") is not None,
        },
    }


def _method(opened: Opened, name: str) -> dict[str, Any]:
    influences = opened.version(naming.influences(name))
    return {
        "name": name,
        "dampings": dampings.stored_values(influences),
        "versions": [version.number for version in opened.store.versions(influences.artifact)],
        "version": influences.number,
    }


def _pictured(opened: Opened) -> dict[str, Any] | None:
    """The input that stands for a row as a small picture; None where rows are no pictures."""
    look = Look(opened.version("dataset"))
    pictures = (look.pictured(name) for name in look.inputs)
    return next(filter(None, pictures), None)


def row(view: View, contents: Contents, split: Split, place: int, marks: dict) -> dict[str, Any]:
    """One row with what is known of it, and its content."""
    return told(view, split, place, marks) | contents.shown(view.split(split), place)


def one(
    view: View, contents: Contents, split: Split, name: str, marks: dict[str, Any]
) -> dict[str, Any]:
    """One row of a split with those of the other that matter to it most, and how all are spread."""
    rows, other = view.split(split), view.split("train" if split == "test" else "test")
    place = rows.position(name)
    values = view.of_test(place) if split == "test" else view.of_train(place)

    def listed(places: NDArray) -> list[dict[str, Any]]:
        """Rows of the other split, each with how it differs from this one."""
        split: Split = other.axis.name
        return [
            row(view, contents, split, each, marks)
            | {
                "influence": number(values[each]),
                "differences": differences(contents, (other, each), (rows, place)),
            }
            for each in places.tolist()
        ]

    helps, harms = map(listed, strongest(values))
    return {
        "row": row(view, contents, split, place, marks),
        "at": at(view),
        "helps": helps,
        "harms": harms,
        "histogram": histogram(values),
        "n": view.n,
    }


def at(view: View) -> dict[str, Any]:
    """Which numbers these are."""
    number_ = view.influences.number
    return {"method": view.method, "damping": view.shown_damping, "version": number_}


def strongest(values: NDArray, few: int = STRONGEST) -> tuple[NDArray, NDArray]:
    """The places of the largest positive and of the largest negative values, strongest first."""
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(-values[finite], kind="stable")]
    helps = [k for k in order[:few].tolist() if values[k] > 0]
    harms = [k for k in order[::-1][:few].tolist() if values[k] < 0]
    return np.array(helps, np.int64), np.array(harms, np.int64)


def differences(
    contents: Contents, one: tuple[Rows, int], other: tuple[Rows, int]
) -> list[dict[str, Any]]:
    """The columns of a table's row beside those of another; none of what is no table."""
    name = (look := Look(contents.opened.version("dataset"))).inputs[0]
    if look.names(name) is None:
        return []
    here, there = contents.values(*one, name), contents.values(*other, name)
    if here is None or there is None:
        return []
    return compared(here[0], name, here[1], there[1])


def project(opened: Opened) -> str | None:
    """The project whose code would run for what is computed on demand; None where none is known."""
    folder = project_of(opened)
    return None if folder is None else str(folder)
