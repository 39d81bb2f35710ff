"""The strongest entries of rows, found block by block and merged: numpy alone.

Both orders are by value and then by column, so that the outcome does not depend on how the columns
were cut into blocks.
"""

import numpy as np

ENDS = ("top", "bottom")


def strongest(block: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest and smallest entries of each row, `(rows, 2, count)`, and their columns.

    `columns` names those of the block, ascending. Where there are fewer: NaN, and column -1.

    >>> strongest(np.array([[1.0, 3.0, 2.0]]), np.array([5, 6, 7]), 2)[1]
    array([[[6, 7],
            [5, 7]]])
    """
    values = np.full((len(block), len(ENDS), count), np.nan)
    slots = np.full(values.shape, -1, np.int64)
    few = min(count, block.shape[1])
    for end, signed in enumerate((-block, block)):
        order = _smallest(signed, few)
        values[:, end, :few] = np.take_along_axis(block, order, axis=1)
        slots[:, end, :few] = columns[order]
    return values, slots


def merged(values: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest of all blocks from those of each: `(rows, blocks, 2, k)` → `(rows, 2, count)`.

    Blocks are in the order of their columns, and have `count` entries that are not NaN.
    """
    rows, best = len(values), []
    for end, sign in enumerate((-1, 1)):
        candidates = values[:, :, end].reshape(rows, -1)
        order = _smallest(sign * candidates, count)
        named = columns[:, :, end].reshape(rows, -1)
        best.append([np.take_along_axis(each, order, axis=1) for each in (candidates, named)])
    kept, names = (np.stack(each, axis=1) for each in zip(*best, strict=True))
    return kept, names


def _smallest(block: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest entries of each row, in order; all are not sorted for these few."""
    if not count:  # a block of holes
        return np.empty((len(block), 0), np.intp)
    few = np.sort(np.argpartition(block, count - 1, axis=1)[:, :count], axis=1)
    kept = np.take_along_axis(block, few, axis=1)
    order = np.take_along_axis(few, np.argsort(kept, axis=1, kind="stable"), axis=1)
    # Of equal entries at the limit a partition keeps any: then the whole row is sorted.
    tied = (block <= kept.max(axis=1, keepdims=True)).sum(axis=1) > count
    if tied.any():
        order[tied] = np.argsort(block[tied], axis=1, kind="stable")[:, :count]
    return order
