r"""Fisher matrices by their square roots in the outputs: what is sent back through the network."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from influence_dag.errors import ModelError
from influence_dag.losses import LossFunction, bce_with_logits, cross_entropy, mse

FisherName = Literal["exact", "sampled", "empirical"]

_ROUNDING = 64  # units: eigenvalues below this are zero


def output_roots(
    loss: LossFunction,
    outputs: Float[Tensor, "b ..."],
    targets: Tensor,
    *,
    fisher: FisherName,
    generator: torch.Generator,
) -> Float[Tensor, "c b ..."]:
    r"""Vectors $v_c$ in the space of each sample's outputs, with $\sum_c v_c v_c^\top$ its Fisher.

    The Fisher of the parameters is then $\frac{1}{n} \sum_i \sum_c J_i^\top v_{ic} v_{ic}^\top
    J_i$ with the outputs' Jacobians $J_i$:

    - `"exact"`: $\sum_c v_c v_c^\top = \nabla_f^2 L$, which makes it the Gauss-Newton matrix;
      as many vectors as the outputs' Hessian has rank (classes − 1 for softmax);
    - `"sampled"`: one vector, the gradient at a label drawn from the model. A loss that is no
      known likelihood gets a Gaussian vector with covariance $\nabla_f^2 L$: the same expectation;
    - `"empirical"`: one vector, the gradient at the data's label (Kunstner et al. 2019 say why it
      is a poor curvature).

    Raises `ModelError` for a loss that is not convex in the outputs, unless empirical.
    """
    if fisher == "empirical":
        return _gradient(loss, outputs, targets).unsqueeze(0)
    if fisher == "exact":
        return _needed_roots(loss, outputs, targets)
    if fisher != "sampled":
        raise ValueError(f"unknown fisher {fisher!r}; choose exact, sampled or empirical")
    if loss in _LABELS:
        drawn = _LABELS[loss](outputs, generator)
        # The mean of k log-likelihoods has 1/k of their sum's curvature, 1/k² of its covariance.
        terms = drawn[0].numel()
        return terms**0.5 * _gradient(loss, outputs, drawn).unsqueeze(0)
    roots, _ = _hessian_roots(loss, outputs, targets)
    normal = _normal(tuple(roots.shape[:2]), generator, roots)
    return (roots @ normal.unsqueeze(2)).reshape(1, *outputs.shape).to(outputs.dtype)


def _gradient(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    return grad(lambda f: loss(f, targets).sum())(outputs)


def _needed_roots(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """The columns of the roots that are more than rounding in any row: classes - 1 of softmax."""
    roots, values = _hessian_roots(loss, outputs, targets)
    rounding = _ROUNDING * torch.finfo(outputs.dtype).eps * values[:, -1:]
    needed = (values > rounding).any(0)
    needed[-1] = True  # a loss linear in the outputs leaves one vector of zeros
    return roots[:, :, needed].permute(2, 0, 1).reshape(-1, *outputs.shape).to(outputs.dtype)


def _hessian_roots(
    loss: LossFunction, outputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "n m m"], Float[Tensor, "n m"]]:
    r"""$V \Lambda^{1/2}$ of each row's $\nabla_f^2 L = V \Lambda V^\top$, and Λ, ascending."""
    H = _output_hessians(loss, outputs, targets).double()
    values, vectors = torch.linalg.eigh(H)
    # Confident predictions have a curvature far below 1 whose rounding is not: softmax's p - p².
    rounding = _ROUNDING * torch.finfo(outputs.dtype).eps * values[:, -1].clamp(min=1.0)
    convex = values[:, 0] >= -rounding
    if not convex.all():
        raise _not_convex(values, convex)
    values = values.clamp(min=0)
    return vectors * values.sqrt().unsqueeze(1), values


def _output_hessians(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    r"""$\nabla_f^2 L$ of each sample, (n, m, m), one backward pass an output."""
    n, m = len(outputs), outputs[0].numel()
    _, product, *_ = vjp(lambda f: _gradient(loss, f, targets), outputs)
    unit = torch.eye(m, dtype=outputs.dtype, device=outputs.device)
    unit = unit[:, None].expand(-1, n, -1).reshape(m, *outputs.shape)
    H = vmap(lambda v: product(v)[0])(unit).reshape(m, n, m).transpose(0, 1)
    return (H + H.mT) / 2


def _not_convex(values: Tensor, convex: Tensor) -> ModelError:
    return ModelError(
        f"the loss is not convex in the model's outputs for {int((~convex).sum())} of "
        f"{len(convex)} rows (second derivative {values.min():.3g}), so it has no Fisher of this "
        "kind; choose fisher='empirical', or a method that works on the Hessian (cg, direct)"
    )


# Labels from the model -------------------------------------------------------------------------


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    # On the processor, in float64: the same draws for every device, dtype and batch size.
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(like.device)


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    u = _uniform(shape, generator, like).clamp(min=torch.finfo(torch.float64).eps)
    return torch.special.ndtri(u).to(like.dtype)


def _classes(outputs: Float[Tensor, "n classes *t"], generator: torch.Generator) -> Tensor:
    shape = (len(outputs), *outputs.shape[2:])
    cumulative = outputs.double().softmax(1).cumsum(1)
    below = cumulative < _uniform(shape, generator, outputs).unsqueeze(1)
    return below.sum(1).clamp(max=outputs.shape[1] - 1)


def _coins(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return (_uniform(tuple(outputs.shape), generator, outputs) < outputs.sigmoid()).to(outputs)


def _gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """A squared error is the log-likelihood of a Gaussian of variance 1/2."""
    return outputs + 0.5**0.5 * _normal(tuple(outputs.shape), generator, outputs)


_LABELS: dict[LossFunction, Callable[[Tensor, torch.Generator], Tensor]] = {
    cross_entropy: _classes,
    bce_with_logits: _coins,
    mse: _gaussian,
}
