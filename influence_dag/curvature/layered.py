"""Networks of Linear and elementwise layers, found in a module and run layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from influence_dag.curvature.tracing import Segment, linear_chain
from influence_dag.errors import ModelError
from influence_dag.losses.named import softmax_weights
from influence_dag.objective.objective import LossFunction, Objective, Rows
from influence_dag.objective.outputs import Leaves
from influence_dag.objective.twice_differentiable import plain_gradient

_SAMPLE = 3  # rows on which the chain is compared with the module
_FEW = 32  # vectors that are multiplied with one after the other


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """`z = W a + b`; the places are those in θ, None where frozen or absent."""

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"] | None
    weight_place: slice | None
    bias_place: slice | None

    def __call__(self, a: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return nn.functional.linear(a, self.weight, self.bias)

    def accepts(self, a: Tensor) -> bool:
        """Whether `a` is one vector a sample: no positions, no other axes."""
        return a.ndim == 2 and a.shape[1] == self.weight.shape[1]

    @property
    def is_trainable(self) -> bool:
        return self.weight_place is not None or self.bias_place is not None


@dataclass(frozen=True, eq=False)
class NetworkPass:
    r"""What a forward and a backward pass leave, one row a sample; lists run over layers l.

    `inputs` $a_{l-1}$, `gradients` $g_l = \partial L / \partial z_l$; and for the elementwise
    functions between the layers `slopes` $\varphi_l'(z_l)$ and `bends`
    $\varphi_l''(z_l) \odot W_{l+1}^\top g_{l+1}$. `output_product` multiplies by
    $\partial^2 L / \partial z_L^2$, or by its Gauss-Newton part.
    """

    inputs: list[Float[Tensor, "n _"]]
    gradients: list[Float[Tensor, "n _"]]
    slopes: list[Float[Tensor, "n _"]]
    bends: list[Float[Tensor, "n _"]]
    output_product: Callable[[Float[Tensor, "k n c"]], Float[Tensor, "k n c"]]

    def output_matrix(self) -> Float[Tensor, "n c c"]:
        """The curvature in the last pre-activations of each sample, written out."""
        n, outputs = self.gradients[-1].shape
        identity = torch.eye(outputs, dtype=self.inputs[0].dtype, device=self.inputs[0].device)
        return self.output_product(identity.unsqueeze(1).expand(-1, n, -1)).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class LayeredNetwork:
    """Prefix → Linear → elementwise → … → Linear → loss head, at `objective.params`.

    The prefix (a flatten, a scaling) and what follows the last Linear have no trainable
    parameters; the latter belongs to the loss head. `sums` is what matrices are handed on in,
    whatever they are summed in.
    """

    prefix: Segment
    layers: tuple[LinearLayer, ...]
    activations: tuple[Segment, ...]
    tail: Segment
    loss: LossFunction
    size: int
    sums: torch.dtype = torch.float64

    @classmethod
    def of(cls, objective: Objective, sample: Rows) -> "LayeredNetwork | None":
        """The network behind an objective, or None where it is of another kind.

        A few rows of `sample` are run both ways: the outputs have to agree and what stands
        between the layers has to be elementwise.
        """
        few = sample[:_SAMPLE]  # all of them may lie in a store
        chain = linear_chain(objective.module) if isinstance(few.x, Tensor) else None
        if chain is None or _shares_parameters(objective, chain.linears, chain.segments):
            return None
        if not all(map(_is_plain, chain.linears)):
            return None
        layers = tuple(_layer(objective, linear) for linear in chain.linears)
        prefix, *activations, tail = chain.segments
        network = cls(prefix, layers, tuple(activations), tail, objective.loss, objective.size)
        return network if network._agrees(objective, few) else None

    def run(self, rows: Rows, *, gauss_newton: bool = False) -> NetworkPass:
        """Forward and backward through a batch, with the derivatives of every function."""
        a, slopes, seconds = self.prefix(rows.x).detach(), [], []
        inputs = [a]
        for layer, activation in zip(self.layers, self.activations, strict=False):
            a, slope, second = _derivatives(activation, layer(a))
            inputs.append(a)
            slopes.append(slope)
            seconds.append(second)
        z = self.layers[-1](a)
        gradient, output_product = self._head(z, rows)
        if gauss_newton and self.tail.nodes:  # else the outputs are the pre-activations
            output_product = gauss_newton_product(
                lambda z: (self.tail(z),), z, lambda f: rows.weighted(self.loss(f[0], rows.y))
            )
        gradients, bends = [gradient], []
        for layer, slope, second in zip(
            self.layers[:0:-1], slopes[::-1], seconds[::-1], strict=True
        ):
            back = gradients[0] @ layer.weight
            gradients.insert(0, slope * back)
            bends.insert(0, second * back)
        return NetworkPass(inputs, gradients, slopes, bends, output_product)

    def _head(self, z: Tensor, rows: Rows) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The loss's gradient in the last pre-activations, and products with its Hessian."""
        softmax = self._softmax_product(z, rows)
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            total = rows.weighted(self.loss(self.tail(z.clone()), rows.y)).sum()
            (gradient,) = torch.autograd.grad(total, z, create_graph=softmax is None)
        if softmax is not None:
            return gradient.detach(), softmax

        def product(vectors: Float[Tensor, "k n c"]) -> Float[Tensor, "k n c"]:
            if not gradient.requires_grad:  # a loss linear in the outputs
                return torch.zeros_like(vectors)
            if len(vectors) <= _FEW:
                return torch.stack([plain_gradient(gradient, z, vector) for vector in vectors])
            return torch.autograd.grad(
                gradient,
                z,
                vectors,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )[0]

        return gradient.detach(), product

    def _softmax_product(self, z: Float[Tensor, "n c"], rows: Rows) -> "SoftmaxCurvature | None":
        """Of cross-entropy with one class a row; else None.

        A pass a vector through a graph takes ten times as long.
        """
        weights = None if self.tail.nodes else softmax_weights(self.loss, z, rows.y)
        if weights is None:
            return None
        p = z.detach().softmax(dim=1)
        return SoftmaxCurvature(p, rows.weighted(weights).unsqueeze(1) * p)

    def _agrees(self, objective: Objective, rows: Rows) -> bool:
        a = self.prefix(rows.x)
        for layer, activation in zip(self.layers, self.activations, strict=False):
            if not layer.accepts(a) or not _is_elementwise(activation, layer(a)):
                return False
            a = activation(layer(a))
        if not self.layers[-1].accepts(a):
            return False
        result = self.tail(self.layers[-1](a))
        expected = objective.outputs(objective.params, rows.x)
        if not isinstance(expected, Tensor):
            return False
        tolerance = 1e-5 * float(expected.abs().max())
        return result.shape == expected.shape and bool(
            torch.allclose(result, expected, rtol=1e-4, atol=tolerance)
        )


@dataclass(frozen=True, eq=False)
class SoftmaxCurvature:
    r"""Products with $w \, (\mathrm{diag}(p) - p p^\top)$, a row's weight w in `counted` $w p$.

    Of vectors less what they have at the likeliest output, which changes nothing: what is left
    where p is almost 1 has all its digits then.
    """

    probabilities: Float[Tensor, "n c"]
    counted: Float[Tensor, "n c"]

    def __call__(self, vectors: Float[Tensor, "k n c"]) -> Float[Tensor, "k n c"]:
        likeliest = self.probabilities.argmax(dim=-1, keepdim=True)
        curved = self.counted * (
            vectors - vectors.gather(-1, likeliest.expand(len(vectors), -1, -1))
        )
        return curved - self.probabilities * curved.sum(dim=-1, keepdim=True)


def gauss_newton_product(
    function: Callable[[Tensor], Leaves], point: Tensor, loss: Callable[[Leaves], Tensor]
) -> Callable[[Tensor], Tensor]:
    r"""Products with $J^\top \nabla_f^2 L \, J$, J being the function's Jacobian at the point.

    The function returns a tuple of outputs, the loss takes it. J v comes from reverse mode twice
    (the pull-back is linear, so its own pull-back is J): forward mode is missing for recurrent
    layers and attention kernels. Takes a batch of vectors.
    """
    outputs, pull_back, *_ = vjp(lambda argument: function(argument.clone()), point)
    _, push, *_ = vjp(lambda u: pull_back(u)[0], outputs)
    _, curve, *_ = vjp(grad(lambda f: loss(f).sum()), outputs)
    return vmap(lambda vector: pull_back(*curve(*push(vector)))[0])


def not_layered(objective: Objective) -> ModelError:
    """The error for `route="layered"` where `LayeredNetwork.of` found none."""
    return ModelError(
        f"{type(objective.module).__name__} is not a chain of Linear and elementwise layers, each "
        "used once; use route='auto' or route='autograd'"
    )


def _shares_parameters(
    objective: Objective, linears: tuple[nn.Linear, ...], segments: tuple[Segment, ...]
) -> bool:
    """Whether a trainable parameter is used twice, or elsewhere than in a Linear layer."""
    trainable = {id(p) for p in objective.module.parameters() if p.requires_grad}
    uses = [id(p) for layer in linears for p in layer.parameters() if id(p) in trainable]
    others = {id(p) for segment in segments for p in segment.parameters()}
    return len(uses) != len(set(uses)) or bool(others & trainable)


def _is_plain(linear: nn.Linear) -> bool:
    """Whether weight and bias are parameters, not computed from others, and no hook intervenes."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    return {"weight", "bias"} <= linear._parameters.keys() and not any(hooks)


def _layer(objective: Objective, linear: nn.Linear) -> LinearLayer:
    names = {id(parameter): name for name, parameter in objective.module.named_parameters()}
    values = objective.unflatten(objective.params)

    def resolve(parameter: Tensor | None) -> tuple[Tensor | None, slice | None]:
        if parameter is None:
            return None, None
        name = names[id(parameter)]
        return values.get(name, parameter.detach()), objective.slices.get(name)

    (weight, weight_place), (bias, bias_place) = resolve(linear.weight), resolve(linear.bias)
    assert weight is not None
    return LinearLayer(weight, bias, weight_place, bias_place)


def _derivatives(function: Segment, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an elementwise function."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z.clone())  # it may work in place
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:  # the identity
            return value.detach(), slope, torch.zeros_like(slope)
        (second,) = torch.autograd.grad(slope.sum(), z, materialize_grads=True)
    return value.detach(), slope.detach(), second


def _is_elementwise(function: Segment, z: Tensor) -> bool:
    """Whether the Jacobian J is diagonal: Jᵀv = v ⊙ Jᵀ1 for a random v, around z."""
    generator = torch.Generator(z.device).manual_seed(0)
    noise, v = (
        torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype) for _ in range(2)
    )
    with torch.enable_grad():
        point = (z.detach() + noise).requires_grad_()
        value = function(point.clone())
        if value.shape != z.shape or not value.requires_grad:
            return False
        ones, weighted = (plain_gradient(value, point, u) for u in (torch.ones_like(value), v))
    return torch.allclose(weighted, v * ones, rtol=1e-4, atol=1e-5)
