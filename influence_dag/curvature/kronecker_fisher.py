r"""Fisher matrices by their square roots in the outputs: what is sent back through the network."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.drawn_labels import (
    Distribution,
    Probes,
    Ranked,
    drawn_root,
    not_convex,
    output_gradient,
)
from influence_dag.losses import LossFunction, likelihood_of
from influence_dag.losses.named import softmax_weights
from influence_dag.objective.twice_differentiable import plain_gradient

FisherName = Literal["exact", "sampled", "empirical"]

_ROUNDING = 64  # units: eigenvalues below this are zero


def output_roots(
    loss: LossFunction,
    outputs: Float[Tensor, "b ..."],
    targets: Tensor,
    *,
    fisher: FisherName,
    generator: torch.Generator | Ranked,
    distribution: Distribution | None = None,
) -> Float[Tensor, "c b ..."]:
    r"""Vectors $v_c$ in the space of each sample's outputs, with $\sum_c v_c v_c^\top$ its Fisher.

    The Fisher of the parameters is then $\frac{1}{n} \sum_i \sum_c J_i^\top v_{ic} v_{ic}^\top
    J_i$ with the outputs' Jacobians $J_i$:

    - `"exact"`: $\sum_c v_c v_c^\top = \nabla_f^2 L$, which makes it the Gauss-Newton matrix;
      as many vectors as the outputs' Hessian has rank (classes − 1 for softmax);
    - `"sampled"`: one vector, from a label drawn from the model, whose `distribution` is that of
      the loss or given (`drawn_root`): the same expectation;
    - `"empirical"`: one vector, the gradient at the data's label (Kunstner et al. 2019 say why it
      is a poor curvature).

    Raises `ModelError` for a loss that is not convex in the outputs, unless empirical.
    """
    if fisher == "empirical":
        return output_gradient(loss, outputs, targets).unsqueeze(0)
    if fisher == "exact":
        return _needed_roots(loss, outputs, targets)
    if fisher != "sampled":
        raise ValueError(f"unknown fisher {fisher!r}; choose exact, sampled or empirical")
    root = drawn_root(loss, outputs, targets, distribution=distribution, generator=generator)
    return root.unsqueeze(0)


def _needed_roots(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """The columns of the roots that are more than rounding in any row: classes - 1 of softmax."""
    known = _softmax_roots(loss, outputs, targets)
    roots, values = _hessian_roots(loss, outputs, targets) if known is None else known
    rounding = _ROUNDING * torch.finfo(outputs.dtype).eps * values.amax(1, keepdim=True)
    needed = (values > rounding).any(0)
    needed[-1] = True  # a loss linear in the outputs leaves one vector of zeros
    return roots[:, :, needed].permute(2, 0, 1).reshape(-1, *outputs.shape).to(outputs.dtype)


def _softmax_roots(
    loss: LossFunction, outputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "n m k"], Float[Tensor, "n k"]] | None:
    r"""Those of $w (\mathrm{diag}(p) - p p^\top) = L D L^\top$, and their squared lengths, float64.

    With $s_k = \sum_{j \ge k} p_j$: $D_k = w p_k s_{k+1} / s_k$, $L_{jk} = -p_j / s_{k+1}$ for
    $j > k$ (Tanabe & Sagae 1992). None for any other loss, or where products with the rows'
    curvature show it to be another: three backward passes say so, where forming it takes one an
    output and then its eigenvectors. Cross-entropy of classes has none but that.
    """
    if likelihood_of(loss) != "categorical" or outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    known = softmax_weights(loss, outputs, targets)
    weights = Probes(loss, outputs, targets).categorical() if known is None else known[:, None]
    if weights is None:
        return None
    p = outputs.double().softmax(1)
    s = p.flip(1).cumsum(1).flip(1)
    tail, tiny = s[:, 1:], torch.finfo(p.dtype).tiny
    D = weights * p[:, :-1] * tail / s[:, :-1].clamp(min=tiny)
    L = (-p[:, :, None] / tail[:, None, :].clamp(min=tiny)).tril(-1)
    L.diagonal(dim1=1, dim2=2).fill_(1.0)
    roots = L * D.sqrt()[:, None, :]
    return roots, roots.square().sum(1)


def _hessian_roots(
    loss: LossFunction, outputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "n m m"], Float[Tensor, "n m"]]:
    r"""$V \Lambda^{1/2}$ of each row's $\nabla_f^2 L = V \Lambda V^\top$, and Λ, ascending.

    NaN in the first where it is in the derivatives: `eigh` would make numbers of it.
    """
    H = output_hessians(loss, outputs, targets).double()
    finite = H.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(H.masked_fill(~finite[:, None, None], 0))
    # Confident predictions have a curvature far below 1 whose rounding is not: softmax's p - p².
    rounding = _ROUNDING * torch.finfo(outputs.dtype).eps * values[:, -1].clamp(min=1.0)
    convex = values[:, 0] >= -rounding
    if not convex.all():
        raise not_convex(int((~convex).sum()), len(convex), float(values.min()))
    values = values.clamp(min=0)
    vectors[~finite] = torch.nan
    return vectors * values.sqrt().unsqueeze(1), values


def output_hessians(
    loss: LossFunction, outputs: Float[Tensor, "n ..."], targets: Any
) -> Float[Tensor, "n m m"]:
    r"""$\nabla_f^2 L$ of each sample, one backward pass an output."""
    n, m = len(outputs), outputs[0].numel()
    point = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(point.clone(), targets).sum()  # it may work in place
        slope = plain_gradient(total, point, create_graph=True)
    if not slope.requires_grad:  # a loss linear in the outputs
        return outputs.new_zeros(n, m, m)
    unit = torch.eye(m, dtype=outputs.dtype, device=outputs.device)
    unit = unit[:, None].expand(-1, n, -1).reshape(m, *outputs.shape)
    # Not through torch.func: its first use in a process imports a compiler, 0.7 CPU s.
    H = torch.stack([plain_gradient(slope, point, vector) for vector in unit])
    H = H.reshape(m, n, m).transpose(0, 1)
    return (H + H.mT) / 2
