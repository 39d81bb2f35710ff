r"""How near θ is to a minimum: the mean gradient against the gradients that it is the mean of."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows

_ROWS = 256  # whose gradients' norms are averaged, at most
_NUMBERS = 2**27  # of these gradients in all


@dataclass(frozen=True)
class Stationarity:
    r"""The norm of $\nabla f$, f being the penalised mean loss, and its size.

    `relative` is $\lVert \nabla f \rVert / (\sum_i w_i \lVert \nabla L_i \rVert / \sum_i w_i)$ over
    `rows` of the training rows that count: 0 at a minimum, near 1 where all pull the same way. A
    network trained by an ordinary loop has 0.01 to 0.6.
    """

    gradient_norm: float
    relative: float
    rows: int


def stationarity(
    objective: Objective, rows: Rows, gradient: Float[Tensor, " p"]
) -> Stationarity | None:
    """Of θ, given the gradient of the penalised mean loss; None where no row's can be taken."""
    counted = torch.arange(len(rows))
    if rows.weights is not None:
        counted = rows.weights.cpu().nonzero().flatten()
    few = min(len(counted), _ROWS, max(8, _NUMBERS // objective.size))
    index = torch.linspace(0, len(counted) - 1, few, dtype=torch.float64).round().long()
    sample = rows[counted[index].to(objective.device)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told again by the gradients that are kept
            norms = per_sample_gradients(objective, sample.unweighted).norms()
    except ModelError:
        return None  # told, with the row, where gradients are kept
    mean = float((norms * sample.shares.to(norms)).sum())
    norm = float(gradient.norm())
    return Stationarity(norm, norm / mean if mean > 0 else float(norm > 0), few)
