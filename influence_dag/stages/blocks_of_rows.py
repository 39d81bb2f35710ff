"""Stored rows that are read when they are asked for: of all inputs only a block is in memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence_dag.objective.objective import Rows

FEWEST = 1024  # rows of a block: shuffled within it, rows meet others in their batches

Load = Callable[[np.ndarray], Rows]


class BlocksOfRows(Rows):
    """Rows of which `load(positions)` reads some; targets and weights are in memory.

    As any others they are indexed, batched and shuffled, the last only within blocks of `size`
    rows, so that each block is read once a pass. `x` of all rows reads all of them.
    """

    _load: Load
    _size: int
    _ranks: Tensor | None
    _last: tuple[int, Rows] | None

    def __init__(
        self, load: Load, y: Tensor, weights: Tensor | None, size: int, ranks: Tensor | None = None
    ):
        of_all = {"y": y, "weights": weights, "_load": load, "_size": size, "_ranks": ranks}
        for name, value in of_all.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_last", None)

    @property
    def x(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._load(np.arange(len(self))).x

    @property
    def ranks(self) -> Tensor | None:
        return self._ranks

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor) -> Rows:
        chosen = index if isinstance(index, slice) else index.cpu().numpy()
        positions = np.arange(len(self))[chosen]
        blocks = positions // self._size
        if not len(positions) or (np.diff(blocks) < 0).any() or np.ptp(blocks) > 1:
            return self._load(positions)
        parts = []
        for block in np.unique(blocks):
            inside = torch.from_numpy(positions[blocks == block] - block * self._size)
            parts.append(self._block(int(block))[inside.to(self.y.device)])
        return parts[0] if len(parts) == 1 else Rows.joined(parts)

    def map(self, function: Any) -> Rows:
        return self[:].map(function)

    @property
    def unweighted(self) -> Rows:
        if self.weights is None:
            return self
        return BlocksOfRows(
            lambda at: self._load(at).unweighted, self.y, None, self._size, self._ranks
        )

    def shuffled(self, generator: torch.Generator) -> Tensor:
        starts = range(0, len(self), self._size)
        sizes = [min(self._size, len(self) - start) for start in starts]
        return torch.cat(
            [
                start + torch.randperm(size, generator=generator)
                for start, size in zip(starts, sizes, strict=True)
            ]
        )

    def _block(self, block: int) -> Rows:
        if self._last is not None and self._last[0] == block:
            return self._last[1]
        object.__setattr__(self, "_last", None)  # let go of it before the next one is read
        start = block * self._size
        rows = self._load(np.arange(start, min(start + self._size, len(self))))
        object.__setattr__(self, "_last", (block, rows))
        return rows
