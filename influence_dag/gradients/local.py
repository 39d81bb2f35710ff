r"""Per-sample gradients of small layers from what one call takes and gets back.

A norm's scale, an embedding's table, an adapter's matrices, any layer without trained layers
inside: of row i the gradient is that
of $\langle f(x_i, \phi), g_i \rangle$ in its parameters φ, with its input $x_i$ and its output's
gradient $g_i$ caught in the network's own backward pass. That is a pass through one layer a row,
not through the network. Whether it is the gradient (one call, rows that stay rows) is seen
on every batch by the caller's random check.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from influence_dag.gradients.layers import is_capturable
from influence_dag.gradients.uncaptured import NotCaptured

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def is_local(name: str, layer: nn.Module) -> bool:
    """Whether a layer's gradients may be taken so: all trainable parameters in it are its own."""
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
    return bool(name and own) and len(own) == len(trained) and not is_capturable(layer)


def local_gradients(
    name: str,
    layer: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Num[Tensor, "n ..."],
    g: Sequence[Float[Tensor, "n ..."]],
) -> dict[str, Float[Tensor, "c n size"]]:
    """For each output gradient of each row, those of `parameters`, which the layer's names name.

    Raises `NotCaptured` for a layer that is not called with a row alone.
    """
    normal = _normalised(layer, x)
    if normal is not None and all(part.shape == normal.shape for part in g):
        each = [_of_norm(layer, normal, part, set(parameters)) for part in g]
        return {key: torch.stack([found[key] for found in each]) for key in parameters}

    def value(values: dict[str, Tensor], row: Tensor, gradient: Tensor) -> Tensor:
        output = functional_call(layer, values, (row.unsqueeze(0),))
        return (output * gradient.unsqueeze(0)).sum()

    of_rows = vmap(grad(value), in_dims=(None, 0, 0))
    try:
        found = vmap(of_rows, in_dims=(None, None, 0))(dict(parameters), x, torch.stack([*g]))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotCaptured({name}) from error
    # A parameter may be one number, of no axis.
    return {key: values.unsqueeze(-1).flatten(2) for key, values in found.items()}


def _normalised(layer: nn.Module, x: Tensor) -> Tensor | None:
    """What a norm of torch's own multiplies with its scale; None for any other layer."""
    functions = nn.functional
    if type(layer) not in _NORMS:  # a class of one's own may do anything
        return None
    if isinstance(layer, nn.GroupNorm):
        return functions.group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        places = list(layer.normalized_shape)
        return functions.layer_norm(x, places, eps=layer.eps) if x.ndim > len(places) else None
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    mean, variance = layer.running_mean, layer.running_var
    of_batch = layer.training or mean is None
    return None if of_batch else functions.batch_norm(x, mean, variance, eps=layer.eps)


def _of_norm(
    layer: nn.Module, normal: Float[Tensor, "n ..."], g: Float[Tensor, "n ..."], names: set[str]
) -> dict[str, Float[Tensor, "n size"]]:
    r"""Of $y = w \odot \hat x + b$: sums over positions of $g \odot \hat x$ and of g.

    Channels come first among a row's axes, or last where a norm is over the last axes.
    """
    ours = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else None
    positions = tuple(range(2, g.ndim) if ours is None else range(1, g.ndim - ours))

    def summed(values: Tensor) -> Tensor:
        return (values.sum(positions) if positions else values).flatten(1)

    terms = {"weight": lambda: g * normal, "bias": lambda: g}
    return {name: summed(terms[name]()) for name in names}
