"""Memory of temporaries, used again."""

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scratch:
    """Tensors by name, whose numbers nobody needs any more when the next is taken by that name.

    Fresh pages, which come from the system one by one, cost more than the products in them.
    """

    held: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        size, held = math.prod(shape), self.held.get(name)
        if held is None or held.numel() < size:
            held = self.held[name] = like.new_empty(size)
        return held[:size].view(shape)

    def like(self, name: str, other: Tensor) -> Tensor:
        return self.take(name, other, *other.shape)
