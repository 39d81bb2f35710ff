"""What the nearest other rows say of a row's label, and what a row is worth to a vote of such.

Plain numbers: rows are points, targets are classes (integers) or real numbers. Neighbours are
Euclidean, found block by block: of n rows, never n × n numbers are in memory.
"""

from collections.abc import Iterator
from math import prod
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy import ndarray as Array

NEIGHBOURS = 10
Space: TypeAlias = Literal["auto", "input", "penultimate"]  # where neighbours are looked for
UNLABELLED = -100  # for a class: torch's losses leave such a row out
_BLOCK = 2**22  # distances at a time: 32 MB


def are_labelled(targets: Num[Array, " n"]) -> Bool[Array, " n"]:
    """Which rows have a class, of which a neighbour may say something; numbers are none."""
    return targets != UNLABELLED if targets.dtype.kind == "i" else np.ones(len(targets), bool)


def nearest(points: Float[Array, "n d"], k: int) -> Int[Array, "n k"]:
    """The `k` other rows nearest to each row, nearest first (all others, where they are fewer)."""
    (points,), k = _centred(points), min(k, len(points) - 1)
    found = np.empty((len(points), k), np.int64)
    for rows in _blocks(len(points), len(points)):
        distances = _squared_distances(points[rows], points)
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = _first(distances, k)
    return found


def _first(distances: Float[Array, "m n"], k: int) -> Int[Array, "m k"]:
    """Where each row's `k` smallest are, the smallest first."""
    if not k:
        return np.empty((len(distances), 0), np.int64)
    few = np.argpartition(distances, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distances, few, axis=1), axis=1, kind="stable")
    return np.take_along_axis(few, order, axis=1)


def nearest_of_others(
    points: Float[Array, "n d"], others: Float[Array, "t d"], k: int
) -> Int[Array, "t k"]:
    """The `k` points nearest to each of other ones, nearest first."""
    (points, others), k = _centred(points, others), min(k, len(points))
    blocks = [
        _first(_squared_distances(others[rows], points), k)
        for rows in _blocks(len(others), len(points))
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, k), np.int64)


def neighbour_disagreement(
    points: Float[Array, "n d"],
    targets: Num[Array, " n"],
    *,
    k: int = NEIGHBOURS,
    near: Int[Array, "n k"] | None = None,
) -> Float[Array, " n"]:
    r"""How far the `k` nearest other rows contradict each row's target.

    Of classes the share of neighbours with another one, of real numbers the distance from their
    mean; the neighbour of rank r counts $1 / \sqrt r$, so that near ones decide what a plain share
    of k would leave tied. NaN where there is no other row. `near`: `nearest` of them, if known.

    >>> points = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> neighbour_disagreement(points, np.array([0, 0, 1, 0]), k=1)
    array([0., 0., 1., 1.])
    """
    of_neighbours = targets[nearest(points, k) if near is None else near]
    weights = 1 / np.sqrt(np.arange(1, of_neighbours.shape[1] + 1))
    if not weights.size:
        return np.full(len(targets), np.nan)
    weights = weights / weights.sum()
    if targets.dtype.kind == "f":
        return np.abs(targets - of_neighbours @ weights)
    return (of_neighbours != targets[:, None]) @ weights


def knn_shapley(
    points: Float[Array, "n d"],
    classes: Int[Array, " n"],
    test_points: Float[Array, "t d"],
    test_classes: Int[Array, " t"],
    *,
    k: int = NEIGHBOURS,
) -> Float[Array, " n"]:
    """Each row's Shapley value in a `k`-nearest-neighbour classifier, mean over the test rows.

    Exact, by sorting (Jia et al. 2019, "Efficient task-specific data valuation for nearest neighbor
    algorithms", theorem 1). A low value is suspect. The test rows' labels are taken for right.
    """
    blocks = _shapley_blocks(points, classes, test_points, test_classes, k)
    return sum((block.sum(axis=0) for block in blocks), np.zeros(len(points))) / len(test_points)


def knn_shapley_of_each(
    points: Float[Array, "n d"],
    classes: Int[Array, " n"],
    test_points: Float[Array, "t d"],
    test_classes: Int[Array, " t"],
    *,
    k: int = NEIGHBOURS,
) -> Float[Array, "t n"]:
    """The same for each test row: what each training row does for its classification."""
    return np.concatenate(list(_shapley_blocks(points, classes, test_points, test_classes, k)))


def _shapley_blocks(
    points: Array, classes: Array, test_points: Array, test_classes: Array, k: int
) -> Iterator[Float[Array, "b n"]]:
    (points, test_points), n = _centred(points, test_points), len(points)
    ranks = np.arange(1, n)  # of all but the farthest
    steps = np.minimum(k, ranks) / (k * ranks)
    for rows in _blocks(len(test_points), n):
        distances = _squared_distances(test_points[rows], points)
        order = np.argsort(distances, axis=1, kind="stable")
        right = (classes[order] == test_classes[rows, None]).astype(np.float64)
        sorted_ = np.empty_like(right)
        sorted_[:, -1] = right[:, -1] * min(k, n) / (k * n)
        gains = (right[:, :-1] - right[:, 1:]) * steps
        sorted_[:, :-1] = sorted_[:, -1:] + np.cumsum(gains[:, ::-1], axis=1)[:, ::-1]
        values = np.empty_like(right)
        np.put_along_axis(values, order, sorted_, axis=1)
        yield values


def _centred(*sets: Array) -> list[Float[Array, "n d"]]:
    """Points around the mean of the first set, where squared distances lose fewest digits."""
    size = prod(sets[0].shape[1:])  # told: of a set without points, -1 could be anything
    flat = [points.reshape(len(points), size).astype(np.float64) for points in sets]
    centre = flat[0].mean(axis=0)
    return [points - centre for points in flat]


def _squared_distances(a: Float[Array, "m d"], b: Float[Array, "n d"]) -> Float[Array, "m n"]:
    product = a @ b.T
    product *= -2
    product += np.einsum("nd,nd->n", a, a)[:, None]
    product += np.einsum("nd,nd->n", b, b)
    return product


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, width))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))
