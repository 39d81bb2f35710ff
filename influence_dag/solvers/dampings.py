"""A damping from the curvature itself: the mean size of its eigenvalues."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature, DenseCurvature
from influence_dag.objective.threads import eigenvalues

_PROBES, _STEPS = 8, 20
_DIRECT = 6000  # parameters up to which all eigenvalues are computed
_FEW = _PROBES * _STEPS  # parameters of a matrix that takes no more products than an estimate


class AutomaticDamping(NamedTuple):
    """A λ, and in words where it comes from."""

    value: float
    reason: str


def automatic_damping(
    curvature: Curvature, *, semidefinite: bool, seed: int = 0
) -> AutomaticDamping:
    r"""$\lambda = \frac{1}{p} \sum_i |\mu_i|$, which is the trace over p where no μ is negative.

    Away from a minimum it is within a few hundredths of the best λ that a linear datamodelling
    score finds (docs/methods.md). Exact for up to 160 parameters, and where the matrix is at hand
    and, for a curvature with negative eigenvalues, has at most 6,000; else estimated from products,
    with stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) or Hutchinson's trace.
    """
    if curvature.size <= _FEW and not isinstance(curvature, DenseCurvature):
        curvature = DenseCurvature(curvature.dense())
    if isinstance(curvature, DenseCurvature):
        if semidefinite:
            trace = curvature.matrix.diagonal().double().mean().item()
            return AutomaticDamping(max(trace, 0.0), "trace / p of the curvature's matrix")
        if curvature.size <= _DIRECT:
            return of_eigenvalues(eigenvalues(curvature.matrix.double()))
    rows = random_signs(_PROBES, curvature, seed)
    if semidefinite:
        value = (rows * curvature.apply(rows)).sum(1).double().mean().item() / curvature.size
        return AutomaticDamping(max(value, 0.0), f"trace / p, estimated from {_PROBES} products")
    value = _mean_size(curvature, rows / curvature.size**0.5)
    made = f"{_PROBES} runs of {min(_STEPS, curvature.size)} Lanczos steps"
    return AutomaticDamping(value, f"mean |eigenvalue|, estimated from {made}")


def of_eigenvalues(values: Float[Tensor, " p"]) -> AutomaticDamping:
    """From all eigenvalues of a curvature."""
    return AutomaticDamping(values.abs().mean().item(), "mean |eigenvalue| of the curvature")


def random_signs(count: int, curvature: Curvature, seed: int) -> Float[Tensor, "count p"]:
    """Rows of random signs, the same for a seed on every device and dtype."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, curvature.size), generator=generator)
    return (2 * signs - 1).to(curvature.device, curvature.dtype)


def _mean_size(curvature: Curvature, probes: Float[Tensor, "k p"]) -> float:
    r"""Mean of $v^\top |H| v$ over unit probes v, by Gauss quadrature from Lanczos.

    Each probe keeps a basis of its own, reorthogonalised; a basis that has become invariant goes
    on from nothing, which adds zeros.
    """
    bases, images = [probes], []
    for _ in range(min(_STEPS, curvature.size)):
        images.append(curvature.apply(bases[-1]))
        following = images[-1]
        for _ in range(2):
            for basis in bases:
                following = following - (following * basis).sum(1, keepdim=True) * basis
        length = following.norm(dim=1, keepdim=True)
        small = length <= 1e3 * torch.finfo(curvature.dtype).eps * images[0].norm(dim=1)[:, None]
        bases.append(torch.where(small, 0.0, following / length))
    V = torch.stack(bases[:-1], dim=1).double()
    T = V @ torch.stack(images, dim=1).double().mT
    values, rotation = torch.linalg.eigh((T + T.mT) / 2)
    return (rotation[:, 0].square() * values.abs()).sum(1).mean().item()
