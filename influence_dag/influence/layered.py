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
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from influence_dag.curvature.heads import CalledHead
from influence_dag.curvature.layered import LayeredNetwork, SoftmaxCurvature
from influence_dag.curvature.layered_products import LayeredBatch, step_of
from influence_dag.curvature.scratch import Scratch
from influence_dag.gradients.memory import fresh
from influence_dag.gradients.products import runs
from influence_dag.objective.objective import Rows

_FEW = 32  # outputs: the Hessian of more is differentiated by torch.func, which imports a compiler
_NARROW = 64  # units of a layer for whose products a pass through their result takes longer
_FACTORS, _STEPS = 8, 2**21  # taken together, and their numbers
_NUMBERS = 3 * 2**18  # of all layers' moves: fewer are bound by overhead, more by memory
_WRITTEN = 2**20  # of a batch's second derivatives in the outputs


def layered_products(
    network: LayeredNetwork, factors: Float[Tensor, "k p"], rows: Rows, *, chunk: int
) -> Float[Tensor, "k n *features"]:
    """∂/∂x of factor · gradient for every pair, `chunk` factors at a time."""
    result, scratch = fresh((len(factors), *rows.x.shape), factors), Scratch()
    units = sum(len(layer.weight) for layer in network.layers)
    together = max(_FACTORS, _NUMBERS // (units * max(1, len(rows))))
    chunk = max(1, min(chunk, len(factors), together, _STEPS // network.size))
    size = max(16, _NUMBERS // (chunk * units))
    inputs = network.layers[0].weight.shape[1]
    for block in runs(len(rows), size):
        batch = _batch(network, rows[block], len(factors))
        pull_back, products = _pull_back(network, rows.x[block]), _Pairs(batch, chunk, scratch)
        for some in runs(len(factors), chunk):
            pairs = result[some, block]
            shape = *pairs.shape[:2], inputs
            if pull_back is None:
                products.write(factors[some], pairs.view(shape))
            else:
                of_inputs = scratch.take("products", factors, *shape)
                products.write(factors[some], of_inputs)
                pairs.copy_(pull_back(of_inputs))
    return result


class _Pairs:
    """Of a batch of rows with k factors at a time; what all of these share is laid down once."""

    def __init__(self, batch: LayeredBatch, k: int, scratch: Scratch):
        self.batch, self.scratch = batch, scratch
        layers = zip(batch.network.layers, batch.gradients, strict=True)
        self.sent = [
            _Sent.of(layer.weight, g, k, scratch, f"of layer {m}")
            for m, (layer, g) in enumerate(layers)
        ]

    def write(self, factors: Float[Tensor, "k p"], out: Float[Tensor, "k n d"]) -> None:
        r"""$V_1^\top g_1 + W_1^\top R g_1$."""
        batch, rows, k = self.batch, slice(None), len(factors)
        steps = [step_of(layer, factors) for layer in batch.network.layers]
        moves, moved = batch.forward(rows, steps, self.scratch)
        batch.head.product(moves[-1], rows, self.sent[-1].moved(k))
        for m in range(len(steps) - 1, 0, -1):
            back = moved[m]  # nobody needs it any more
            _multiply(self.sent[m].terms(steps[m]), back)
            back.mul_(batch.slopes[m - 1])
            torch.addcmul(back, batch.bends[m - 1], moves[m - 1], out=self.sent[m - 1].moved(k))
        _multiply([(g, V) for V, g in self.sent[0].terms(steps[0])], out)


@dataclass(frozen=True, eq=False)
class _Sent:
    r"""$W^\top R\{g\} + V^\top g$ of a layer; of few units it is $[W; V]^\top [R\{g\}; g]$.

    Two products would go through the result twice, which takes longer than their operations.
    `weights` has W already then, and `both` has g.
    """

    weight: Float[Tensor, "o i"]
    gradients: Float[Tensor, "o n"]
    both: Float[Tensor, "k _ n"]
    weights: Float[Tensor, "k _ i"] | None

    @classmethod
    def of(
        cls, W: Float[Tensor, "o i"], g: Float[Tensor, "o n"], k: int, scratch: Scratch, name: str
    ) -> "_Sent":
        o, n = g.shape
        if o > min(_NARROW, W.shape[1] // 2):
            return cls(W, g, scratch.take(f"gradients {name}", g, k, o, n), None)
        both = scratch.take(f"gradients {name}", g, k, 2 * o, n)
        weights = scratch.take(f"weights {name}", g, k, 2 * o, W.shape[1])
        both[:, o:], weights[:, :o] = g, W
        return cls(W, g, both, weights)

    def moved(self, k: int) -> Float[Tensor, "k o n"]:
        r"""Where $R\{g\}$ is to be written for so many factors."""
        return self.both[:k, : len(self.gradients)]

    def terms(
        self, step: Float[Tensor, "k o _"]
    ) -> list[tuple[Float[Tensor, "k _ i"], Float[Tensor, "k _ n"]]]:
        """What is to be multiplied, over the middle axes, and added."""
        k, V = len(step), step[..., :-1]
        if self.weights is None:
            return [
                (self.weight.expand(k, -1, -1), self.both[:k]),
                (V, self.gradients.expand(k, -1, -1)),
            ]
        self.weights[:k, len(self.gradients) :] = V
        return [(self.weights[:k], self.both[:k])]


def _multiply(
    terms: list[tuple[Float[Tensor, "k o a"], Float[Tensor, "k o b"]]], out: Float[Tensor, "k a b"]
) -> None:
    (A, B), *others = terms
    torch.bmm(A.mT, B, out=out)
    for A, B in others:
        out.baddbmm_(A.mT, B)


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
    many = c >= min(k, _FEW) or n * c * c > _WRITTEN
    if many and not isinstance(state.output_product, SoftmaxCurvature):
        return LayeredBatch.of(network, state, CalledHead(state.output_product))
    return LayeredBatch.of(network, state)
