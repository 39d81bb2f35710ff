"""A loss of one's own, called on batches of one row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from influence_dag.errors import ModelError
from influence_dag.structures import described, tensors_of, with_tensors


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A loss called on batches of one."""

    loss: Callable[[Any, Any], Tensor]

    def losses(self, output: Any, target: Any) -> Tensor:
        if not tensors_of(output):
            raise ModelError(
                f"the model returns an object of type {described(output)}; its rows can be told "
                "apart in a tensor, and in tuples, mappings and dataclasses of tensors: return one "
                "of those, or give a loss of one value a row"
            )
        rows = len(tensors_of((target, output))[0])
        leaves = tensors_of((output, target))
        split = [leaf.ndim > 0 and len(leaf) == rows for leaf in leaves]

        def of_one(*rowwise: Tensor) -> Tensor:
            remaining = iter(rowwise)
            parts = [
                next(remaining).unsqueeze(0) if own else leaf
                for leaf, own in zip(leaves, split, strict=True)
            ]
            value = self.loss(*with_tensors((output, target), parts))
            return _one_number(value)

        batched = [leaf for leaf, own in zip(leaves, split, strict=True) if own]
        try:
            return vmap(of_one)(*batched)
        except RuntimeError:
            # A loss that looks at its values (`if (variance < 0).any()`): slow but right. An
            # error that has another cause comes again from here.
            return torch.stack([of_one(*row) for row in zip(*batched, strict=True)])

    def shares(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        losses = self.losses(output, target)
        return losses, torch.ones_like(losses)

    def whole(self, output: Any, target: Any) -> Tensor:
        return self.loss(output, target)


def _one_number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise several(value)
    return value.reshape(())


def several(value: Any) -> ModelError:
    return ModelError(
        f"the loss returns {described(value)} for a batch of one; it has to reduce each sample to "
        "one number"
    )
