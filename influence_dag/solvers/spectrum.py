"""The ends of a curvature's spectrum, for the advice that errors give."""

import torch
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.base import random_rows


def extreme_eigenvalues(
    curvature: Curvature, *, steps: int = 60, seed: int = 0
) -> tuple[float, float]:
    """Estimates of the smallest and the largest eigenvalue by `steps` of Lanczos.

    Full reorthogonalisation. Ritz values lie inside the spectrum, so each is moved outwards by
    the norm of its residual: advice that follows from the estimates is on the safe side.
    """
    dtype, device = curvature.dtype, curvature.device
    vector = random_rows(1, curvature.size, seed=seed, dtype=dtype, device=device)
    basis = images = vector[:0]
    for _ in range(min(steps, curvature.size)):
        length = vector.norm()
        if length <= torch.finfo(dtype).eps * images.norm():
            break
        basis = torch.cat([basis, vector / length])
        images = torch.cat([images, curvature.apply(basis[-1:])])
        vector = images[-1:]
        for _ in range(2):
            vector = vector - (vector @ basis.T) @ basis
    return _outer_ritz_values(basis.double(), images.double())


def _outer_ritz_values(basis: Tensor, images: Tensor) -> tuple[float, float]:
    projected = basis @ images.T
    values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    ends, rotation = values[[0, -1]], rotation[:, [0, -1]].T
    residuals = (rotation @ images - ends[:, None] * (rotation @ basis)).norm(dim=1)
    return (ends[0] - residuals[0]).item(), (ends[1] + residuals[1]).item()
