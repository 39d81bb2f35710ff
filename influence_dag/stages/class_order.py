"""Classes that have names: which of a given model's outputs they are, and if that can be right."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from influence_dag.datasets.sources.words import TRUTH
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.errors import DataError, ModelError, StudyError
from influence_dag.study.study import StudySettings
from influence_dag.texts import listed

if TYPE_CHECKING:  # words are told before torch is imported
    from influence_dag.objective.objective import Objective
    from influence_dag.objective.rows import Rows
    from influence_dag.stages.workbench import Workbench
    from influence_dag.store import Version

AT_ONCE = 1_024  # rows whose outputs are in memory
BEYOND = 3.0  # standard errors above chance, from which on an order is believed


def check_words(settings: StudySettings, train: SplitRows) -> None:
    """A `DataError` for words where the loss wants numbers, or whose order nobody said.

    A model that was fitted elsewhere has outputs in an order of its own; that of the alphabet
    would be a guess.
    """
    if train.classes is None or train.classes == TRUTH:
        return
    column, shown = settings.data.target, listed(train.classes)
    if settings.model.loss == "mse":
        raise DataError(
            f"{train.source}: column {column!r} holds words ({shown}), and mse wants numbers; for "
            "classes write model.loss: cross_entropy"
        )
    if of_unknown_order(settings, train.classes) and not train.ordered:
        raise DataError(
            f"{train.source}: column {column!r} holds words ({shown}), and which output of the "
            "given checkpoint each of them is cannot be told; list them in the order of the "
            f"model's outputs, for example data.classes: [{', '.join(train.classes[:8])}]"
        )


def of_unknown_order(settings: StudySettings, classes: Iterable[str]) -> bool:
    """Whether labels are words that the settings do not put in the order of a checkpoint's outputs.

    Some sources have an order of their own.
    """
    return bool(settings.model.checkpoint and not settings.data.classes and _outputs(classes))


def class_names(bench: "Workbench") -> list[str]:
    """What the classes are called, in the order of their numbers; none where labels are numbers."""
    return list(map(str, bench.require("dataset").attrs.get("classes", ())))


def check_kept_classes(bench: "Workbench", kept: "Version | None", settings_key: str) -> None:
    """Raise `StudyError` where a pinned θ would meet labels whose outputs are other ones.

    Numbers of words follow their alphabet: an edit that brings a class, or takes the last row of
    one, moves those behind it. What `data.classes` puts in an old place is only a new name. Labels
    without names are the numbers of their outputs.
    """
    if kept is None or kept.attrs.get("settings_key") != settings_key:
        return
    before, now = _outputs(kept.attrs.get("classes", ())), _outputs(class_names(bench))
    if not before and not now:
        return
    numbers = [str(k) for k in range(max(len(before), len(now)))]
    moved = any(
        (before or numbers).index(name) != (now or numbers).index(name)
        for name in set(before or numbers) & set(now or numbers)
    )
    renamed = any(one != other for one, other in zip(before or numbers, now, strict=False))
    if not (moved or (renamed and not bench.settings.data.classes)):
        return
    was, is_now = (listed(names) if names else "0, 1, 2, …" for names in (before, now))
    raise StudyError(
        f"{bench.study.name}: the stored {kept.artifact} was fitted with outputs for the classes "
        f"{was}, in this order, and the labels are {is_now} now: it would be asked for others; "
        f"{_kept_order(before, now)}, or let θ follow: model.refit: on_change"
    )


def _outputs(classes: Iterable[str]) -> list[str]:
    """Names of the outputs in order; none where labels are their numbers, as truth values are."""
    names = list(map(str, classes))
    return [] if tuple(names) == TRUTH else names


def _kept_order(before: list[str], now: list[str]) -> str:
    """The setting under which each label meets the output that it had."""
    if not before:
        return "write the labels in data.classes in the order of the model's outputs 0, 1, 2, …"
    if set(now) - set(before) and set(before) - set(now):  # names that are gone, or others' now
        return "write the labels of today in data.classes in that order"
    return (
        f"write data.classes: [{listed(before, 40)}] (new ones behind, where the model has "
        "outputs for them)"
    )


def check_order(objective: "Objective", rows: "Rows", classes: list[str], name: str) -> None:
    r"""Tell an order of classes under which a given model is no better than chance.

    Chance is what predictions with these shares would hit of labels with those shares,
    $\sum_k p_k q_k$. Where the same predictions under another order of the classes beat it, that
    order is named in a `ModelError`; a model that no order helps is a warning.
    """
    import torch

    if not classes or not isinstance(rows.y, torch.Tensor) or rows.y.is_floating_point():
        return
    table = _confusion(objective, rows, len(classes))
    if table is None or np.count_nonzero(table.sum(1)) < 2 or _beyond_chance(table) > BEYOND:
        return  # of rows of one class a model that always says so is right, and at chance
    hits = np.trace(table) / table.sum()
    said = (
        f"{name} is no better than chance under the order of data.classes, {classes}: right on "
        f"{hits:.1%} of {int(table.sum())} training rows"
    )
    order = _best_order(table)
    if _beyond_chance(table[:, order]) > BEYOND:
        better = [classes[k] for k in np.argsort(order)]
        share = np.trace(table[:, order]) / table.sum()
        raise ModelError(
            f"{said}; under {better} it would be right on {share:.1%}: write the classes in the "
            "order of the model's outputs"
        )
    warnings.warn(f"{said}, and no other order is better", RuntimeWarning, stacklevel=2)


def _confusion(objective: "Objective", rows: "Rows", classes: int) -> np.ndarray | None:
    """Counts of rows by label and predicted class, `(k, k)`; None where there is no class."""
    import torch

    counts = torch.zeros(classes**2, dtype=torch.long)
    for batch in rows.batches(AT_ONCE):
        with torch.no_grad():
            outputs = objective.outputs(objective.params, batch.x)
        if not isinstance(outputs, torch.Tensor) or outputs.shape[1:] != (classes,):
            return None
        pairs = batch.y * classes + outputs.argmax(dim=1)
        counts += torch.bincount(pairs.cpu(), minlength=classes**2)
    return counts.reshape(classes, classes).numpy().astype(float)


def _beyond_chance(table: np.ndarray) -> float:
    """How many standard errors more rows are hit than by chance."""
    n = table.sum()
    chance = float(table.sum(0) @ table.sum(1)) / n**2
    spread = np.sqrt(max(chance * (1 - chance), 1e-12) / n)
    return float((np.trace(table) / n - chance) / spread)


def _best_order(table: np.ndarray) -> np.ndarray:
    """The output of each label when the largest counts are matched first."""
    order, left = np.full(len(table), -1), table.copy()
    for _ in range(len(table)):
        label, output = np.unravel_index(int(left.argmax()), left.shape)
        order[label] = output
        left[label], left[:, output] = -1, -1
    return order
