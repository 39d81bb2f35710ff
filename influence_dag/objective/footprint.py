"""How many numbers a differentiated pass keeps for each row, from which block sizes follow."""

import torch

from influence_dag.objective.objective import Objective, Rows


def saved_numbers(objective: Objective, rows: Rows) -> list[int]:
    """What one more row adds to each tensor that the loss's graph saves, about.

    Parameters and other tensors without a row axis add nothing. Taken from a run on one row and
    one on two; where those save different tensors, one row's are counted whole.
    """
    one, two = (_saved(objective, rows[:count]) for count in (1, 2))
    if len(one) != len(two):
        return one
    return [max(0, after - before) for before, after in zip(one, two, strict=True)]


def _saved(objective: Objective, rows: Rows) -> list[int]:
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor.detach()  # itself, it would be in a ring with its own graph, and never freed

    theta = objective.params.clone().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        objective.losses(theta, rows)
    return sizes
