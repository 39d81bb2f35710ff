"""Rows of data as tensors: inputs that are a tensor, a tuple or a dict of tensors, and targets."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from influence_dag.errors import ModelError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def map_inputs(function: Callable[[Tensor], Any], x: Any) -> Any:
    """`function` of every tensor of a tensor, a tuple of tensors or a dict of tensors.

    >>> map_inputs(len, {"image": torch.zeros(3, 8), "age": torch.zeros(3)})
    {'image': 3, 'age': 3}
    """
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {name: map_inputs(function, value) for name, value in x.items()}
    return tuple(map_inputs(function, value) for value in x)


def input_leaves(x: Any) -> list[Tensor]:
    """The tensors of `x`, in order."""
    leaves: list[Tensor] = []
    map_inputs(leaves.append, x)
    return leaves


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples `(x_i, y_i)` as tensors whose leading axis is the sample.

    A tuple of inputs is passed to the model by position, a dict by name.
    """

    x: Any
    y: Any

    def __post_init__(self) -> None:
        lengths = {len(leaf) for leaf in input_leaves((self.x, self.y))}
        if len(lengths) != 1:
            raise ModelError(
                f"inputs and targets disagree on the number of rows: {sorted(lengths)}; "
                "every tensor needs the sample as its leading axis"
            )

    @classmethod
    def from_loader(cls, loader: Iterable[tuple[Any, Any]]) -> "Rows":
        """All `(x, y)` batches of a data loader in order, a ragged last batch included."""
        batches = [(x, y) for x, y in loader]
        if not batches:
            raise ModelError("the data loader is empty; at least one (x, y) batch is needed")
        return cls(_concatenate([x for x, _ in batches]), _concatenate([y for _, y in batches]))

    def __len__(self) -> int:
        return len(input_leaves(self.y)[0])

    def __getitem__(self, index: slice | Tensor) -> "Rows":
        return Rows(
            map_inputs(lambda leaf: leaf[index], self.x),
            map_inputs(lambda leaf: leaf[index], self.y),
        )

    def batches(self, size: int) -> Iterator["Rows"]:
        """Consecutive slices of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Rows":
        """On another device, or with floating tensors (labels stay integers) in another dtype."""

        def move(leaf: Tensor) -> Tensor:
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        return Rows(map_inputs(move, self.x), map_inputs(move, self.y))


def _concatenate(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {name: _concatenate([part[name] for part in parts]) for name in first}
    return tuple(_concatenate([part[i] for part in parts]) for i in range(len(first)))
