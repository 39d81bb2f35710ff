"""Whether what is asked for fits into memory, before anything is computed for it."""

import torch

from influence_dag.errors import ModelError
from influence_dag.influence.points import Point
from influence_dag.objective.free_memory import free_memory
from influence_dag.objective.objective import Rows
from influence_dag.texts import readable_bytes


def check_fits(point: Point, rows: Rows, tests: int, *, shares: int) -> None:
    """Raise `ModelError` where shares × test × train × features are more than there is room for."""
    leaves = point.leaves(rows[:1])
    features = sum(leaf.numel() for leaf in leaves)
    need = shares * tests * len(rows) * sum(leaf.nbytes for leaf in leaves)
    free = free_bytes(leaves[0].device)
    if free is None or need <= free:
        return
    each = f", in {shares} shares," if shares > 1 else ""
    raise ModelError(
        f"perturbation influences of {tests:,} × {len(rows):,} rows with {features:,} features"
        f"{each} take {readable_bytes(need)}, and {readable_bytes(free)} are free; hand over fewer "
        "rows at a time (test_data, input_data), or make a study, which keeps what is asked for of "
        "them (perturbation.reduce, perturbation.pairs)"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where the system does not say.

    What torch holds of a GPU's and has given to nobody is free as well.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return free_memory()
