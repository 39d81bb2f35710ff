"""Slow dense answers in float64 by plain autograd, and closed forms; no code of the package.

`loss(output, target)` is any torch loss of a batch, reduced by mean (`F.cross_entropy`). A
parameter vector is the trainable parameters, row-major, in `named_parameters` order. Inputs are
a tensor, a tuple of tensors (by position) or a dict (by name).
"""

import copy

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def each(function, x):
    """The function of every tensor of the inputs."""
    if isinstance(x, dict):
        return {name: function(tensor) for name, tensor in x.items()}
    return tuple(map(function, x)) if isinstance(x, tuple) else function(x)


def double(module, *inputs):
    """A float64 copy of the module, and the inputs with floating tensors in float64."""
    moved = [each(lambda t: t.double() if t.is_floating_point() else t, x) for x in inputs]
    return copy.deepcopy(module).double(), *moved


def row(x, i):
    return each(lambda tensor: tensor[i : i + 1], x)


def parameters(module):
    return [p for p in module.parameters() if p.requires_grad]


def _loss_of_vector(module, loss, x, y):
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    shapes = [p.shape for p in parameters(module)]

    def value(theta):
        pieces = theta.split([shape.numel() for shape in shapes])
        named = {n: t.view(s) for n, t, s in zip(names, pieces, shapes, strict=True)}
        args = x if isinstance(x, tuple) else () if isinstance(x, dict) else (x,)
        return loss(functional_call(module, named, args, x if isinstance(x, dict) else {}), y)

    return value, torch.cat([p.detach().reshape(-1) for p in parameters(module)])


def hessian(module, loss, x, y):
    """Hessian of the mean loss in float64, one row of second derivatives after another."""
    module, x, y = double(module, x, y)
    value, theta = _loss_of_vector(module, loss, x, y)
    theta.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        (gradient,) = torch.autograd.grad(value(theta), theta, create_graph=True)
    rows = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]
    return torch.stack(rows)


def per_sample_gradients(module, loss, x, y):
    """Gradient of each sample's loss in float64, one at a time, (n, p)."""
    module, x, y = double(module, x, y)
    rows = []
    for i in range(len(y)):
        value, theta = _loss_of_vector(module, loss, row(x, i), y[i : i + 1])
        theta.requires_grad_()
        rows.append(torch.autograd.grad(value(theta), theta)[0])
    return torch.stack(rows)


def damped_solve(H, rhs, damping):
    """Rows of `rhs` times the inverse of `H + damping`, float64."""
    H = torch.as_tensor(H, dtype=torch.float64)
    rhs = torch.as_tensor(rhs, dtype=torch.float64)
    return torch.linalg.solve(H + damping * torch.eye(len(H), dtype=H.dtype), rhs.T).T


def influence_factors(module, loss, train, test, damping):
    rhs = per_sample_gradients(module, loss, *test)
    return damped_solve(hessian(module, loss, *train), rhs, damping)


def influences(module, loss, train, test, damping):
    """(test, train): factors times gradients of the training rows."""
    factors = influence_factors(module, loss, train, test, damping)
    return factors @ per_sample_gradients(module, loss, *train).T


def mixed_products(module, loss, factors, x, y, of=None):
    """d/dx_i of (factor · gradient of sample i), (k, n, *features), one pair at a time.

    `of` names the input to differentiate in where x is a tuple (position) or a dict (name).
    """
    module, factors, x, y = double(module, factors, x, y)
    columns = [
        _mixed_products_of_row(module, loss, factors, row(x, i), y[i : i + 1], of)
        for i in range(len(y))
    ]
    return torch.stack(columns, dim=1)


def _mixed_products_of_row(module, loss, factors, x, y, of):
    x = each(torch.clone, x)
    point = (x if of is None else x[of]).requires_grad_()
    value, theta = _loss_of_vector(module, loss, x, y)
    theta.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        (gradient,) = torch.autograd.grad(value(theta), theta, create_graph=True)
    options = {"retain_graph": True, "materialize_grads": True}
    return torch.stack([torch.autograd.grad(gradient @ s, point, **options)[0][0] for s in factors])


def perturbation_influences(module, loss, train, test, damping, of=None):
    """(test, train, *features)."""
    factors = influence_factors(module, loss, train, test, damping)
    return mixed_products(module, loss, factors, *train, of=of)


# Closed forms for a linear model without bias, loss (xᵀθ − y)² / 2, penalty (damping / 2) ‖θ‖².


def ridge_fit(x, y, damping):
    return torch.linalg.solve(
        x.T @ x / len(x) + damping * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y / len(x)
    )


def ridge_influences(x, y, x_test, y_test, theta, damping):
    """(test, train) with H = xᵀx / n and gradient (xᵀθ − y) x."""
    factors = _ridge_factors(x, x_test, y_test, theta, damping)
    return factors @ ((x @ theta - y)[:, None] * x).T


def ridge_perturbation_influences(x, y, x_test, y_test, theta, damping):
    """(test, train, feature): d/dx of s·x (xᵀθ − y) = s (xᵀθ − y) + (s·x) θ."""
    factors = _ridge_factors(x, x_test, y_test, theta, damping)
    residuals = x @ theta - y
    return (
        factors[:, None, :] * residuals[None, :, None]
        + (factors @ x.T)[:, :, None] * theta[None, None, :]
    )


def _ridge_factors(x, x_test, y_test, theta, damping):
    gradients = (x_test @ theta - y_test)[:, None] * x_test
    return damped_solve(x.T @ x / len(x), gradients, damping)
