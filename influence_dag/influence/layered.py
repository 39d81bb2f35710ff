r"""Perturbation influences of layered networks by the R-operator.

With the factor $s = \{V_l\}$ shaped like the weights, $s^\top \nabla_\theta L$ is the derivative of
the loss when θ moves along s; Pearlmutter (1994) carries that derivative, R, through the network:

$$ R z_l = V_l \tilde a_{l-1} + W_l R a_{l-1}, \quad R a_l = \varphi_l' \odot R z_l, \quad
   R g_{l-1} = \varphi'' \odot R z_{l-1} \odot W_l^\top g_l
             + \varphi' \odot (V_l^\top g_l + W_l^\top R g_l) $$

and $P = V_1^\top g_1 + W_1^\top R g_1$. About $4 \sum_l d_l d_{l-1}$ multiply-adds for a pair of a
factor and a training row, all in matrix products, however many features there are.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from influence_dag.curvature.layered import LayeredNetwork, LinearLayer, NetworkPass
from influence_dag.gradients.memory import fresh
from influence_dag.objective.objective import Rows

_FEW = 32  # outputs: the Hessian of more is differentiated by torch.func, which imports a compiler
_NUMBERS = 2**20  # of the widest temporary: smaller ones are bound by overhead, larger by memory


def layered_products(
    network: LayeredNetwork, factors: Float[Tensor, "k p"], rows: Rows, *, chunk: int
) -> Float[Tensor, "k n *features"]:
    """∂/∂x of factor · gradient for every pair, `chunk` factors at a time."""
    result = fresh((len(factors), *rows.x.shape), factors)
    widest = max(max(layer.weight.shape) for layer in network.layers)
    size = max(16, _NUMBERS // (chunk * widest))
    inputs = network.layers[0].weight.shape[1]
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        state = _with_small_products(network.run(rows[block]), len(factors))
        pull_back = _pull_back(network, rows.x[block])
        for first in range(0, len(factors), chunk):
            some = slice(first, first + chunk)
            pairs = result[some, block]
            if pull_back is None:
                out = pairs.view(*pairs.shape[:2], inputs)
                _products(network, state, factors[some], out)
            else:
                pairs.copy_(pull_back(_products(network, state, factors[some])))
    return result


def _pull_back(network: LayeredNetwork, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """From (k, n, d), of the first layer's inputs, to (k, n, *features), of the rows'.

    None where these are those, or those in another shape: nothing is differentiated then, since
    the first use of torch.func in a process imports a compiler, 1 CPU s.
    """
    if not network.prefix.nodes or _only_reshapes(network.prefix, x):
        return None
    _, pull_back, *_ = vjp(network.prefix, x)
    return lambda products: vmap(pull_back)(products)[0]


def _only_reshapes(prefix: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether what comes out is a view of all that goes in, in its order, for autograd as well."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        out = prefix(at)
    return (
        out.requires_grad
        and out.data_ptr() == at.data_ptr()
        and out.numel() == at.numel()
        and out.is_contiguous()
        and at.is_contiguous()
    )


def _with_small_products(state: NetworkPass, k: int) -> NetworkPass:
    """The loss's Hessian in a row's outputs written out, where that takes fewer products than k.

    Of rows that are not for themselves it is another one, which is found out afterwards.
    """
    n, c = state.gradients[-1].shape
    if c >= min(k, _FEW) or n * c * c > _NUMBERS:
        return state
    H = state.output_matrix()

    def product(vectors: Float[Tensor, "k n c"]) -> Float[Tensor, "k n c"]:
        return torch.bmm(vectors.transpose(0, 1), H).transpose(0, 1)

    return replace(state, output_product=product)


def _products(
    network: LayeredNetwork,
    state: NetworkPass,
    factors: Float[Tensor, "k p"],
    out: Float[Tensor, "k n d"] | None = None,
) -> Float[Tensor, "k n d"]:
    """The derivatives in the first layer's inputs, for one block of pairs."""
    moves = [_moves(layer, factors) for layer in network.layers]
    forward = _forward(network, state, moves, len(factors))
    Rg = state.output_product(forward.pop())
    for index in range(len(network.layers) - 1, 0, -1):
        Rg = _back(network.layers[index], moves[index][0], state.gradients[index], Rg)
        Rg.mul_(state.slopes[index - 1])
        Rg.addcmul_(forward.pop(), state.bends[index - 1])
    return _back(network.layers[0], moves[0][0], state.gradients[0], Rg, out)


_Move = tuple[Float[Tensor, "k _ _"] | None, Float[Tensor, "k _"] | None]


def _moves(layer: LinearLayer, factors: Float[Tensor, "k p"]) -> _Move:
    """The factors' parts shaped like the layer's weight and bias; None where those are frozen."""
    weight = None if layer.weight_place is None else factors[:, layer.weight_place]
    bias = None if layer.bias_place is None else factors[:, layer.bias_place]
    return None if weight is None else weight.unflatten(1, layer.weight.shape), bias


def _forward(
    network: LayeredNetwork, state: NetworkPass, moves: list[_Move], k: int
) -> list[Float[Tensor, "k n _"]]:
    """R z of every layer."""
    Rzs: list[Tensor] = []
    for index, (layer, (V, v)) in enumerate(zip(network.layers, moves, strict=True)):
        a = state.inputs[index]
        start = a.new_zeros(1) if v is None else v.unsqueeze(1)
        if V is None:
            Rz = start.expand(k, len(a), len(layer.weight)).clone()
        else:
            Rz = torch.baddbmm(start, a.expand(k, -1, -1), V.mT)
        if index:
            moved = Rzs[-1] * state.slopes[index - 1]
            Rz.flatten(0, 1).addmm_(moved.flatten(0, 1), layer.weight.T)
        Rzs.append(Rz)
    return Rzs


def _back(
    layer: LinearLayer,
    V: Float[Tensor, "k d_out d_in"] | None,
    g: Float[Tensor, "n d_out"],
    Rg: Float[Tensor, "k n d_out"],
    out: Float[Tensor, "k n d_in"] | None = None,
) -> Float[Tensor, "k n d_in"]:
    """Vᵀ g + Wᵀ R g, where a result is given straight into it."""
    k = len(Rg)
    if out is None:
        out = Rg @ layer.weight
    else:
        torch.bmm(Rg, layer.weight.expand(k, -1, -1), out=out)
    return out if V is None else out.baddbmm_(g.expand(k, -1, -1), V)
