"""How many numbers a pass keeps for each row, from which block sizes follow, and multiplies."""

import copy
import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from influence_dag.objective.rows import Rows
from influence_dag.structures import tensors_of

if TYPE_CHECKING:
    from influence_dag.objective.batching import Of
    from influence_dag.objective.objective import Objective

_WIDEST = 2**23  # bytes of a pass's widest tensor: a convolution's patches are several times it
_FEWEST = 16  # rows from which on a row costs the same in any batch, and meets others

# Of each objective's rows, by their shapes: asked for again and again, and always the same.
_KNOWN: "WeakKeyDictionary[Objective, dict[Any, list[int]]]" = WeakKeyDictionary()


def rows_in_cache(objective: "Objective", rows: Rows, most: int, *, of: "Of" = "loss") -> int:
    """How many rows a pass takes at once, at most `most`: fewer where activations are large.

    The memory of tensors of tens of MiB goes back to the system each time, to be mapped page by
    page again: in such batches a convolution's pass takes twice the time a row. Memory of other
    devices stays with them. `rows` are some to try it on.
    """
    if objective.device.type != "cpu" or most <= _FEWEST:
        return most
    known = _known(objective, rows, of)
    return most if known is None else of_numbers(objective, max(known, default=0), most)


def kept_numbers(objective: "Objective", rows: Rows) -> float:
    """How many numbers the graph of a row's loss keeps, about; ∞ where that is not known."""
    known = _known(objective, rows, "loss")
    return math.inf if known is None else sum(known)


def widest_numbers(objective: "Objective", rows: Rows) -> int:
    """How many numbers the widest tensor that it keeps has a row; 1 where that is not known."""
    return max(_known(objective, rows, "loss") or [1])


def _known(objective: "Objective", rows: Rows, of: "Of") -> list[int] | None:
    of = of if objective.measurement is not None else "loss"
    few = rows[:1]  # all of them may lie in a store
    key = of, tuple(leaf.shape[1:] for leaf in tensors_of((few.x, few.y)))
    known = _KNOWN.setdefault(objective, {})
    if key not in known:
        try:
            known[key] = saved_numbers(objective, rows, of=of)
        except Exception:  # of whatever the model raises: told by the pass itself
            return None
    return known[key]


def of_numbers(objective: "Objective", widest: int, most: int) -> int:
    """`rows_in_cache` where a row's part of the widest tensor is known."""
    if objective.device.type != "cpu":
        return most
    size = _WIDEST // (max(1, widest) * objective.params.element_size())
    return min(most, max(_FEWEST, size))


def saved_numbers(objective: "Objective", rows: Rows, *, of: "Of" = "loss") -> list[int]:
    """What one more row adds to each tensor that the graph of the loss saves, about.

    Parameters and other tensors without a row axis add nothing. Taken from a run on the first row
    and one on it twice; where those save different tensors, one row's are counted whole. A network
    that takes derivatives by `torch.func` cannot be counted: as many as its parameters are assumed.
    """
    try:
        one, two = (
            _saved(objective, rows[:1][torch.zeros(n, dtype=torch.long)], of) for n in (1, 2)
        )
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return [objective.size]
    if len(one) != len(two):
        return one
    return [max(0, after - before) for before, after in zip(one, two, strict=True)]


def _saved(objective: "Objective", rows: Rows, of: "Of") -> list[int]:
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor.detach()  # itself, it would be in a ring with its own graph, and never freed

    theta = objective.params.clone().requires_grad_()
    values = objective.losses if of == "loss" else objective.measurements
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        values(theta, rows)
    return sizes


def multiplications(objective: "Objective", rows: Rows) -> int:
    """How many numbers a forward pass multiplies for a row, about: parameters times positions.

    A layer has as many positions as numbers that it returns for each of its outputs (of a
    convolution, a sequence); all parameters have one where the model does not run on a row. A copy
    of the module is called, in which a call may leave what it likes.
    """
    counted: list[int] = []

    def hook(own: list[nn.Parameter]) -> Any:
        size, outputs = sum(each.numel() for each in own), max((1, *own[0].shape[:1]))

        def count(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            returned = max((leaf.numel() for leaf in tensors_of(output)), default=0)
            counted.append(size * max(1, returned // outputs))

        return count

    try:
        spare = copy.copy(objective)
        spare.module = copy.deepcopy(objective.module)
        for layer in spare.module.modules():
            if own := list(layer.parameters(recurse=False)):
                layer.register_forward_hook(hook(own))
        copied = rows[:1][torch.zeros(1, dtype=torch.long)].to(dtype=objective.dtype)
        with torch.enable_grad():  # else fused kernels may go round layers
            spare.outputs(objective.params.clone().requires_grad_(), copied.x)
    except Exception:  # of whatever the model raises: told by the fit itself
        return objective.size
    return max(objective.size, sum(counted))
