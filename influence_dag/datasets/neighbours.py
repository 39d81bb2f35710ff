"""What the nearest rows of a stored dataset say of each training row's label."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from influence_dag.datasets.slots import Axis, Split
from influence_dag.store import Version
from influence_dag.suspicion import (
    NEIGHBOURS,
    Votes,
    are_labelled,
    nearest,
    neighbour_disagreement,
    votes,
)

MOST_NUMBERS = 2**28  # of all rows' inputs: 2 GiB in float64


def has_points(dataset: Version) -> bool:
    """Whether rows are points: one input of real numbers, one target, and not too many of them."""
    inputs, y = list(dataset.attrs["inputs"]), dataset.variables["train_y"]
    if len(inputs) != 1 or len(y.shape) != 1:
        return False
    x = dataset.variables["train_x"]
    return x.dtype.startswith("float") and prod(x.shape) <= MOST_NUMBERS


def labelled(dataset: Version, split: Split, *, are_classes: bool) -> NDArray[np.int64]:
    """Slots of the rows that exist and have a label, ascending."""
    slots = Axis.read(dataset, split).slots
    return slots[are_labelled(dataset.read(f"{split}_y")[slots])] if are_classes else slots


def points(dataset: Version, split: Split, slots: NDArray[np.int64]) -> NDArray:
    """The inputs of these rows, as the model sees them, one vector a row."""
    values = dataset.read(f"{split}_x")[slots]
    return values.reshape(len(slots), prod(values.shape[1:]))


def have_classes(dataset: Version, loss: str | None, predicted: NDArray | None) -> bool:
    """Whether whole numbers that are targets are classes, rather than amounts (an age, a count).

    They have names, or the loss says so. One of a study's own does not: then what the model has
    `predicted` of the training rows (NaN where nothing is known) is the number of a class, or is
    no whole number.
    """
    if not dataset.variables["train_y"].dtype.startswith("int"):
        return False
    if dataset.attrs.get("classes") or loss in ("cross_entropy", "bce_with_logits", "next_token"):
        return True
    return loss != "mse" and (predicted is None or are_whole(predicted))


def are_whole(values: NDArray) -> bool:
    """Whether numbers, as far as they are known, are whole ones."""
    return not np.mod(values[np.isfinite(values)], 1).any()


def targets(
    dataset: Version, split: Split, slots: NDArray[np.int64], *, are_classes: bool
) -> NDArray:
    """Classes as integers or numbers as floats, of these rows."""
    values = dataset.read(f"{split}_y")[slots]
    return values if are_classes else values.astype(np.float64)


def stored_neighbours(
    dataset: Version, k: int = NEIGHBOURS, *, are_classes: bool
) -> tuple[NDArray[np.float64], Votes | None]:
    """`suspicion.neighbour_disagreement` and, of classes, `votes`, of `labelled` training rows."""
    slots: dict[Split, NDArray[np.int64]] = {
        split: labelled(dataset, split, are_classes=are_classes) for split in ("train", "test")
    }
    train, test = (points(dataset, *each) for each in slots.items())
    labels, truth = (targets(dataset, *each, are_classes=are_classes) for each in slots.items())
    near = nearest(train, k)
    disagreement = neighbour_disagreement(train, labels, near=near)
    if labels.dtype.kind != "i":
        return disagreement, None
    return disagreement, votes(train, labels, test, truth, k=k, near=near)


def cost(dataset: Version) -> float:
    """Multiplications that all distances take."""
    shape = dataset.variables["train_x"].shape
    others = dataset.variables["test_x"].shape[0]
    return float(shape[0]) * (shape[0] + others) * prod(shape[1:])
