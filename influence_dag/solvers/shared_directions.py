r"""Conjugate gradients whose rows share their directions: a block Krylov method.

With orthonormal directions P (d, p) of all unfinished rows and $Q = A P$, every row takes the best
step in the whole of their span,

$$\alpha = (P^\top Q)^{-1} P^\top R, \quad X \mathrel{+}= P \alpha, \quad R \mathrel{-}= Q \alpha,
  \quad P \leftarrow \operatorname{orth}(Z - P (P^\top Q)^{-1} Q^\top Z), \quad Z = M^{-1} R$$

(O'Leary 1980, *The block conjugate gradient algorithm and related methods*, preconditioned by M;
directions that depend on each other are left out, as in Ji & Li 2017, *A breakdown-free block
conjugate gradient method*). k rows see k directions a product instead of one: the more rows,
the fewer products each.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_DEPENDENT = 2  # of digits: directions are kept down to this root of rounding


def step_of(
    directions: Float[Tensor, "d p"], products: Float[Tensor, "d p"], *, zero: float
) -> Float[Tensor, "d d"] | None:
    r"""$(P^\top A P)^{-1}$ where A is positive along the directions; None where it is negative.

    Below `zero` a curvature is nothing but rounding, and is not followed.
    """
    small = (directions @ products.T).to(torch.float64)
    values, basis = torch.linalg.eigh((small + small.mT) / 2)
    if values[0] < -zero:
        return None
    inverse = torch.where(values > zero, 1 / values, 0)
    return ((basis * inverse) @ basis.mT).to(directions.dtype)


def orthonormal(vectors: Float[Tensor, "k p"]) -> Float[Tensor, "d p"]:
    """A basis of what the rows span, whatever their lengths; what depends on others is left out."""
    length = vectors.norm(dim=1, keepdim=True)
    rows = (vectors / length)[length[:, 0] > 0]
    if not len(rows):
        return rows
    basis, triangle = torch.linalg.qr(rows.mT)
    left, sizes, _ = torch.linalg.svd(triangle)
    kept = sizes > sizes[0] * torch.finfo(vectors.dtype).eps ** (1 / _DEPENDENT)
    return (basis @ left[:, kept]).mT.contiguous()
