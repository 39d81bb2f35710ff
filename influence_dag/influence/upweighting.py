"""The up-weighting kernel on one block: influences of rows."""

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.gradients.per_sample import Gradients
from influence_dag.objective.objective import flushed_denormals


@flushed_denormals()
def influences(
    factors: Float[Tensor, "k p"],
    gradients: Gradients | Float[Tensor, "n p"],
    *,
    out: Float[Tensor, "k n"] | None = None,
) -> Float[Tensor, "k n"]:
    r"""Influence of each training row on each test loss, up-weighting.

    $$ I_{ji} = s_j^\top \nabla_\theta L(z_i), \qquad
       s_j = (H + \lambda I)^{-1} \nabla_\theta L(z_{test,j}) $$

    Positive means helpful: fitting again without $z_i$ changes the test loss by about
    $+1/n$ times the entry. (Koh & Liang 2017, eq. 2, has the opposite sign.) Not divided by n.
    Written into `out` if it is given.

    >>> import torch
    >>> influences(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor([[3., 0.],
            [0., 4.]])
    """
    if isinstance(gradients, Gradients):
        return gradients.inner(factors, out)
    return torch.matmul(factors, gradients.T, out=out)
