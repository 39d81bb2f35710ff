"""Derivatives of the loss of one row after another, by plain `torch.autograd` in float64.

In another precision they say what rounding does to plain autograd. Nothing here is batched,
vectorised or shared with the package. The fused kernel of `weight_norm`, whose double backward
torch has wrong, is replaced by the formula.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from adversary.data import each, in_precision
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class RowDerivatives:
    """Of each row: L (n,), ∇L (n, p), ∇²L (n, p, p), Gauss-Newton parts (n, p, p), and mixed
    derivatives ∂∇L/∂x by the name of the input, (n, p, *features); integer inputs have none;
    ‖∂f/∂θ‖² as `slopes` (n,)."""

    losses: Tensor
    gradients: Tensor
    hessians: Tensor
    gauss_newtons: Tensor
    slopes: Tensor
    mixed: dict[str, Tensor]

    @property
    def asymmetry(self):
        H = self.hessians
        return float((H - H.mT).abs().max() / H.abs().max().clamp(min=1e-300))


def leaves(x, prefix=""):
    """The tensors of an input by name; those of a tuple are named by their position."""
    if isinstance(x, Tensor):
        return {prefix: x}
    pairs = x.items() if isinstance(x, dict) else enumerate(x)
    return {name: leaf for key, value in pairs for name, leaf in leaves(value, str(key)).items()}


def row(x, i, dtype=torch.float64):
    """Row i as a batch of one, a copy in which can be differentiated."""

    def copied(tensor):
        one = tensor[i : i + 1].clone()
        return one.to(dtype).requires_grad_() if one.is_floating_point() else one

    return each(copied, x)


def call(module, x):
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


def parameters(module):
    return [p for p in module.parameters() if p.requires_grad]


def flat(values):
    return torch.cat([value.to_dense().reshape(-1) for value in values])


def derivative(value, points, *, again=False):
    """∂value/∂points, zeros where there is no dependence at all."""
    if not value.requires_grad:
        return [torch.zeros_like(point) for point in points]
    return torch.autograd.grad(
        value, points, create_graph=again, retain_graph=True, materialize_grads=True
    )


def row_losses(module, value_of_row, x, y):
    """The value of each row, no derivative."""
    with exact_kernels():
        return torch.stack([value_of_row(call(module, row(x, i)), y, i) for i in range(rows(y))])


def rows(y):
    return len(next(iter(leaves(y).values())))


def differentiate(module, output_of, value, x, y, *, wrt=None, second=True, dtype=torch.float64):
    """`RowDerivatives` of `value(output_of(module(x_i)), y_i)`.

    `module` is of `dtype`; `output_of` takes the tensor that the loss is a function of, without the
    row's axis, out of what the module returns, `value` gives the loss. With `wrt`, the name of a
    submodule, mixed derivatives are in what it puts out. `second=False` stops at gradients.
    """
    theta, parts = parameters(module), []
    with exact_kernels():
        for i in range(rows(y)):
            one, target = row(x, i, dtype), each(lambda t, i=i: t[i], in_precision(y, dtype))
            parts.append(_of_row(module, theta, output_of, value, one, target, wrt, second))
    losses, gradients, hessians, gauss_newtons, slopes, mixed = zip(*parts, strict=True)
    return RowDerivatives(
        torch.stack(losses),
        torch.stack(gradients),
        torch.stack(hessians),
        torch.stack(gauss_newtons),
        torch.stack(slopes),
        {name: torch.stack([part[name] for part in mixed]) for name in mixed[0]},
    )


def _of_row(module, theta, output_of, value, x, target, wrt, second):
    shifted: dict[str, Tensor] = {}
    with _shifted(module, wrt, shifted):
        f = output_of(call(module, x))
    loss = value(f, target)
    points = shifted or {n: leaf for n, leaf in leaves(x).items() if leaf.requires_grad}
    pieces = derivative(loss, theta, again=True)
    gradient = flat(pieces).detach()
    if not second:
        empty = gradient.new_zeros(0)
        return loss.detach(), gradient, empty, empty, empty, {}
    every = [*theta, *points.values()]
    # Entry by entry of each tensor: of their concatenation, each pass would go through all of it.
    rows_of = [derivative(g, every) for piece in pieces for g in piece.to_dense().reshape(-1)]
    H = torch.stack([flat(row[: len(theta)]) for row in rows_of])
    mixed = {
        name: torch.stack([row[len(theta) + k][0] for row in rows_of])
        for k, name in enumerate(points)
    }
    return loss.detach(), gradient, H, *_gauss_newton(f, target, value, theta), mixed


def _gauss_newton(f, target, value, theta):
    """Jᵀ S J of one row, S the second derivative of the loss in its outputs, and ‖J‖²."""
    J = torch.stack([flat(derivative(entry, theta)) for entry in f.reshape(-1)])
    point = f.detach().reshape(-1).clone().requires_grad_()
    (slope,) = derivative(value(point.view(f.shape), target), [point], again=True)
    S = torch.stack([derivative(entry, [point])[0] for entry in slope])
    return J.T @ S @ J, J.detach().square().sum()


@contextmanager
def _shifted(module, wrt, shifted):
    """Add zeros, in which can be differentiated, to what the submodule puts out."""
    if wrt is None:
        yield
        return

    def hook(_module, _inputs, output):
        shifted["0"] = torch.zeros_like(output).requires_grad_()
        return output + shifted["0"]

    handle = module.get_submodule(wrt).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# Kernels --------------------------------------------------------------------------------------


def weight_norm(v, g, dim=0):
    """g v / ‖v‖, norms over every axis but `dim` (all of them for -1)."""
    axes = [axis for axis in range(v.ndim) if axis != dim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


@contextmanager
def exact_kernels():
    """Attention without fused kernels, which have no second derivative; weight_norm written out."""
    old_style = sys.modules["torch.nn.utils.weight_norm"]
    kept = torch._weight_norm, old_style._weight_norm
    torch._weight_norm = old_style._weight_norm = weight_norm
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._weight_norm, old_style._weight_norm = kept


# Answers --------------------------------------------------------------------------------------


def mean(parts, weights):
    """Σ w_i H_i / Σ w_i."""
    weights = torch.ones(len(parts)) if weights is None else weights
    weights = weights.to(parts)
    total = (parts * weights.view(-1, *[1] * (parts.ndim - 1))).sum(0)
    return total / weights.sum()


def damped_solve(H, rhs, damping):
    """Rows of `rhs` times the inverse of H + λI; at λ = 0 the answer of smallest norm."""
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    shifted = values + damping
    inverse = torch.where(is_zero(values) & (damping == 0), 0.0, 1 / shifted)
    return ((rhs @ vectors) * inverse) @ vectors.T


def is_zero(values):
    """Which eigenvalues are rounding of the largest."""
    return values.abs() <= 1e-12 * values.abs().max()
