"""What a layer's gradients are made of, caught while its network runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.gradients.layers import is_capturable, layer_of
from influence_dag.gradients.recording import recorded_layers

_NORMS = 1e-12, 1e18  # between which float32 has the squares that count

Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Captured:
    """For each named layer, a pair of inputs and output gradients a call; and the rows' values."""

    pairs: dict[str, list[Pair]]
    values: Float[Tensor, " n"]


def capture(module: nn.Module, names: set[str], values: Callable[[], Tensor], n: int) -> Captured:
    """For each call of each named layer, its inputs and its output's gradients, one a row.

    `values` runs the module once and returns one number for each of n rows; gradients are those of
    their sum. The backward pass stops at the layers' outputs: no weight gradient is formed. The
    graph stays, for another pass through it. Raises `NotCaptured` for layers that were run in
    another form (`recorded_layers`), if the values are not the module's own.
    """
    with torch.enable_grad(), recorded_layers(module, names, n) as seen, seen.telling_failures():
        rows = values()
        total = rows.sum()
    if seen.rebuilt:
        with torch.no_grad():
            seen.check(rows, values())
    pairs: dict[str, list[Pair]] = {name: [] for name in names}
    reached = [call for call in seen.calls if call[2].requires_grad]
    if reached:
        outputs = [output for _, _, output in reached]
        gradients = torch.autograd.grad(total, outputs, retain_graph=True, materialize_grads=True)
        for (name, x, _), g in zip(reached, gradients, strict=True):
            pairs[name].append(layer_pair(layer_of(module, name), x.detach(), g))
    return Captured(pairs, rows)


def layer_pair(layer: nn.Module, x: Tensor, g: Tensor) -> Pair:
    """Input and output gradient of a layer as `(n, [positions,] width)`.

    As they are for a layer whose gradient is no sum of their products.
    """
    if not is_capturable(layer):
        return x, g
    if isinstance(layer, nn.Embedding):
        x = _indicators(layer, x, g.dtype)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        axes = 2 + len(layer.kernel_size)
        if x.ndim != axes:  # a call without an axis of rows: shown as pairs of no row
            return x.new_zeros(0), g.new_zeros(0)
        return _patches(layer, x), g.flatten(2).transpose(1, 2)
    if x.ndim > 3:
        return x.flatten(1, -2), g.flatten(1, -2)
    return x, g


def _indicators(layer: nn.Embedding, x: Tensor, dtype: torch.dtype) -> Float[Tensor, "n ... d_in"]:
    """Rows of an embedding's table as inputs of a Linear layer; 0 of padding, left as it is."""
    indicators = nn.functional.one_hot(x, layer.num_embeddings).to(dtype)
    if layer.padding_idx is not None:
        indicators[..., layer.padding_idx] = 0
    return indicators


def pair_sums(
    weights: Float[Tensor, " n"], a: Float[Tensor, "n *t d_in"], g: Float[Tensor, "n *t d_out"]
) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    r"""$\sum_i w_i \sum_t g_{it} a_{it}^\top$ and $\sum_i w_i \sum_t g_{it}$."""
    if _is_transposed(a) and _is_transposed(g):  # a convolution's: one product a row copies nothing
        weighted = g.mT * weights[:, None, None]
        start = g.new_zeros(g.shape[-1], a.shape[-1])
        return torch.addbmm(start, weighted, a), weighted.sum((0, 2))
    weighted = (g * weights.reshape(-1, *[1] * (g.ndim - 1))).flatten(0, -2)
    return weighted.T @ a.flatten(0, -2), weighted.sum(0)


def pair_norms(
    a: Float[Tensor, "n *t d_in"], g: Float[Tensor, "n *t d_out"]
) -> Float[Tensor, " n"]:
    """Of each row, no less than the squared norm of its gradient of weight and bias; float64."""
    return (squared_norms(a) + 1) * squared_norms(g)


def squared_norms(values: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Of rows, in float64, in which no float32 number's square is lost."""
    flat = (values.mT if _is_transposed(values) else values).flatten(1)
    if values.dtype != torch.float32:
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
    norms = torch.linalg.vector_norm(flat, dim=1).double()  # a quarter of the time
    lost = ~((norms > _NORMS[0]) & (norms < _NORMS[1]))
    if lost.any():
        norms[lost] = torch.linalg.vector_norm(flat[lost], dim=1, dtype=torch.float64)
    return norms.square()


def _is_transposed(values: Tensor) -> bool:
    """Whether positions are last in memory, as convolutions have them."""
    return values.ndim == 3 and not values.is_contiguous() and values.mT.is_contiguous()


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Float[Tensor, "n t d_in"]:
    """What the kernel sees at each output position, in the order of its weights."""
    sizes = zip(layer.kernel_size, layer.dilation, strict=True)
    if layer.padding == "same":
        total = [dilation * (size - 1) for size, dilation in sizes]
        sides = [(n // 2, n - n // 2) for n in total]
    else:
        padding = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
        sides = [(int(n), int(n)) for n in padding]
    x = nn.functional.pad(x, [n for side in reversed(sides) for n in side])
    size, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        x, size, dilation, stride = x.unsqueeze(2), (1, *size), (1, *dilation), (1, *stride)
    return nn.functional.unfold(x, size, dilation, 0, stride).transpose(1, 2)
