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

from influence_dag.curvature.heads import CalledHead, SoftmaxHead
from influence_dag.curvature.layered import LayeredNetwork, SoftmaxCurvature
from influence_dag.curvature.layered_products import LayeredBatch
from influence_dag.curvature.scratch import Scratch
from influence_dag.gradients.memory import fresh
from influence_dag.objective.objective import Rows

_FEW = 32  # outputs: the Hessian of more is differentiated by torch.func, which imports a compiler
_NARROW, _TOGETHER = 64, 4  # units of a first layer; factors whose pairs stay in a cache
_STEPS = 2**21  # numbers of the factors that are taken together
_NUMBERS = 2**20  # of the widest temporary: smaller ones are bound by overhead, larger by memory


def layered_products(
    network: LayeredNetwork, factors: Float[Tensor, "k p"], rows: Rows, *, chunk: int
) -> Float[Tensor, "k n *features"]:
    """∂/∂x of factor · gradient for every pair, `chunk` factors at a time."""
    result, scratch = fresh((len(factors), *rows.x.shape), factors), Scratch()
    widest = max(max(layer.weight.shape) for layer in network.layers)
    chunk = max(1, min(chunk, _STEPS // network.size))
    size = max(16, _NUMBERS // (chunk * widest))
    inputs = network.layers[0].weight.shape[1]
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        batch = _batch(network, rows[block], len(factors))
        pull_back = _pull_back(network, rows.x[block])
        for first in range(0, len(factors), chunk):
            some = slice(first, first + chunk)
            pairs = result[some, block]
            shape = *pairs.shape[:2], inputs
            if pull_back is None:
                _write(batch, factors[some], pairs.view(shape), scratch)
            else:
                products = scratch.take("products", factors, *shape)
                _write(batch, factors[some], products, scratch)
                pairs.copy_(pull_back(products))
    return result


def _write(
    batch: LayeredBatch,
    factors: Float[Tensor, "k p"],
    out: Float[Tensor, "k n d"],
    scratch: Scratch,
) -> None:
    r"""$V_1^\top g_1 + W_1^\top R g_1$, of a layer with few units for its inputs as one product.

    Two would go through the result twice, which takes longer than their operations.
    """
    W, g = batch.network.layers[0].weight, batch.gradients[0]
    moved, V = batch.moved_gradients(factors, scratch)
    if len(W) > min(_NARROW, W.shape[1] // 2):
        torch.bmm(moved.mT, W.expand(len(V), -1, -1), out=out)
        out.baddbmm_(g.T.expand(len(V), -1, -1), V)
        return
    both = scratch.take("both gradients", g, min(_TOGETHER, len(V)), 2 * len(W), g.shape[1])
    weights = scratch.take("both weights", g, len(both), 2 * len(W), W.shape[1])
    both[:, len(W) :], weights[:, : len(W)] = g, W
    for start in range(0, len(V), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        k = len(V[some])
        both[:k, : len(W)], weights[:k, len(W) :] = moved[some], V[some]
        torch.bmm(both[:k].mT, weights[:k], out=out[some])


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


def _batch(network: LayeredNetwork, rows: Rows, k: int) -> LayeredBatch:
    """The loss's Hessian in a row's outputs written out, where that takes fewer products than k.

    Of rows that are not for themselves it is another one, which is found out afterwards.
    """
    state = network.run(rows)
    n, c = state.gradients[-1].shape
    many = c >= min(k, _FEW) or n * c * c > _NUMBERS
    if many and not isinstance(state.output_product, SoftmaxCurvature):
        return LayeredBatch.of(network, state, CalledHead(state.output_product))
    batch = LayeredBatch.of(network, state)
    if isinstance(batch.head, SoftmaxHead):
        return replace(batch, head=batch.head.steady())
    return batch
