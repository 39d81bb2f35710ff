r"""A Fisher by labels drawn from the model: one vector a row, never a Hessian in the outputs.

The curvature that the loss of a row has in its outputs is that of a likelihood, with a weight for
each of its terms: $\nabla_f^2 L = \bigoplus_t w_t F_t$, where $F_t$ is
$\mathrm{diag}(p_t) - p_t p_t^\top$ of a softmax, $p_t (1 - p_t)$ of a coin, 1 of a Gaussian. The
weights (of classes, of means over positions, 0 where a label is ignored) are read from products
with random vectors, which also show whether it is so. What goes back through the network is
$\sum_t \sqrt{w_t} \nabla_f (-\log p(\hat y_t))$ with $\hat y_t$ drawn, whose mean square is that
curvature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp

from influence_dag.errors import ModelError
from influence_dag.losses import LossFunction, likelihood_of
from influence_dag.objective.twice_differentiable import plain_gradient
from influence_dag.structures import map_tensors

Draw: TypeAlias = Callable[[Any, Any, torch.Generator], Any]
Distribution: TypeAlias = Literal["categorical", "bernoulli", "gaussian"] | Draw

_TOLERANCE = 1e-8  # relative, of products that should be equal
_ROUNDING = 1000  # units
_DRAWS = 2**13  # of rows, to see how a loss of one's own is scaled
_NUMBERS = 2**24  # in the outputs of those
_APART = 1.4  # by which factor a scale may be off before it is none


def drawn_root(
    loss: LossFunction,
    outputs: Float[Tensor, "n ..."],
    targets: Any,
    *,
    distribution: Distribution | None,
    generator: "torch.Generator | Ranked",
) -> Float[Tensor, "n ..."]:
    """The vector of each row, of the distribution that is named, or that the loss is found to have.

    Raises `ModelError` for a loss whose curvature is not that of the distribution, and for one of
    which none is known.
    """
    if isinstance(distribution, str) and distribution not in _ROOTS:
        raise ValueError(
            f"unknown distribution {distribution!r}; known are {', '.join(_ROOTS)}, or pass a "
            "function (output, target, generator) -> target"
        )
    if callable(distribution):
        if isinstance(generator, Ranked):
            raise ValueError("what a function draws follows the order of the rows it is given")
        scale = _scale_of(loss, outputs, targets, distribution)
        drawn = _drawn(distribution, outputs, targets, generator)
        return output_gradient(loss, outputs, drawn) / scale**0.5
    probes = Probes(loss, outputs, targets)
    asked = distribution or likelihood_of(loss)
    for name in [asked] if asked else _FOUND:
        weights = probes.categorical() if name == "categorical" else probes.single(_SIZES[name])
        if weights is not None:
            return weights.sqrt().to(outputs.dtype) * _ROOTS[name](outputs, generator)
    raise _unknown(asked)


def gradient(loss: LossFunction, outputs: Tensor, targets: Any) -> Tensor:
    """Of each row's loss in its outputs, to be differentiated again."""
    return grad(lambda f: loss(f, targets).sum())(outputs)


def output_gradient(loss: LossFunction, outputs: Tensor, targets: Any) -> Tensor:
    """The same as numbers, without torch.func: its first use in a process imports a compiler."""
    point = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(point.clone(), targets).sum()  # it may work in place
    return plain_gradient(total, point)


class Probes:
    """Products of the rows' curvature in the outputs with two random vectors, in float64."""

    def __init__(self, loss: LossFunction, outputs: Tensor, targets: Any):
        try:
            found = _products(loss, outputs.double(), map_tensors(_doubled, targets))
        except RuntimeError:  # a loss that holds to its dtype
            found = _products(loss, outputs, targets)
        self.vectors, products = found
        self.products = [product.double() for product in products]
        self.outputs = outputs.double()
        self.rounding = _ROUNDING * torch.finfo(products[0].dtype).eps

    def categorical(self) -> Float[Tensor, "n 1 ..."] | None:
        """The weights of softmaxes over the second axis; None where it is none."""
        if self.outputs.ndim < 2:
            return None
        p = self.outputs.softmax(1)
        u, v = (p * (x - (p * x).sum(1, keepdim=True)) for x in self.vectors)
        squares = u.square().sum(1, keepdim=True)
        ratio = (u * self.products[0]).sum(1, keepdim=True) / squares.clamp(min=1e-300)
        return self._confirmed(torch.where(squares.sqrt() > self.rounding, ratio, 0.0), u, v)

    def single(self, size: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The weights of terms of a single output each; None where outputs are coupled."""
        F = size(self.outputs)
        u, v = (F * x for x in self.vectors)
        ratio = self.products[0] / u.clamp(min=1e-300)
        return self._confirmed(torch.where(self.rounding < F, ratio, 0.0), u, v)

    def _confirmed(self, weights: Tensor, *products: Tensor) -> Tensor | None:
        """The weights, if times a distribution's products they are the loss's own, row by row.

        But for what rounding leaves of confident predictions' curvature. Raises `ModelError` for
        weights that are negative.
        """
        tolerance, floor = max(_TOLERANCE, self.rounding), self.rounding * (1 + weights.abs().max())
        for product, expected in zip(products, self.products, strict=True):
            limit = tolerance * expected.abs().flatten(1).amax(1) + floor
            apart = (weights * product - expected).abs().flatten(1)
            if not bool((apart <= limit[:, None]).all()):
                return None
        negative = weights < -floor
        if negative.any():
            rows = int(negative.flatten(1).any(1).sum())
            raise not_convex(rows, len(negative), float(weights.min()))
        return weights.clamp(min=0)


def _products(
    loss: LossFunction, outputs: Tensor, targets: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Two random vectors, positive, and the curvature of all rows times each."""
    random = torch.Generator().manual_seed(0)
    vectors = [uniform(tuple(outputs.shape), random, outputs) + 0.5 for _ in range(2)]
    # Not through torch.func: its first use in a process imports a compiler, 0.7 CPU s.
    point = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(point.clone(), targets).sum()  # it may work in place
        slope = plain_gradient(total, point, create_graph=True)
    return vectors, [plain_gradient(slope, point, vector.to(outputs.dtype)) for vector in vectors]


def _doubled(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


def not_convex(rows: int, of: int, smallest: float) -> ModelError:
    """The error for a loss of which some rows have negative curvature in the outputs."""
    return ModelError(
        f"the loss is not convex in the model's outputs for {rows} of {of} rows (second derivative "
        f"{smallest:.3g}), so it has no Fisher of this kind; choose fisher='empirical', or a "
        "method that works on the Hessian (cg, direct)"
    )


def _unknown(distribution: Any) -> ModelError:
    seen = (
        f"the loss's curvature in the outputs is not {distribution}"
        if distribution
        else "the loss's curvature in the outputs is neither of a softmax nor of single numbers"
    )
    return ModelError(
        f"{seen}, and labels are to be drawn (fisher='sampled'): say with distribution= what from, "
        "a function (output, target, generator) -> target ('module:callable' in a study) of which "
        "the loss is the negative log-likelihood; or take fisher='exact'"
    )


# A loss of one's own ---------------------------------------------------------------------------


def _scale_of(loss: LossFunction, outputs: Tensor, targets: Any, draw: Draw) -> float:
    r"""The c in $L = -c \log p$: 1, or 1/k of a loss that is the mean over a row's k targets.

    By Bartlett's identity, $E[\nabla L \nabla L^\top] = c \, E[\nabla^2 L]$ over drawn targets.
    """
    rows = outputs[: max(1, min(len(outputs), _NUMBERS // max(1, outputs[0].numel())))]
    times = max(1, min(_DRAWS, _NUMBERS // max(1, rows[0].numel())) // len(rows))
    f, y = (_repeated(part, len(rows), times) for part in (rows, targets))
    random = torch.Generator().manual_seed(0)
    drawn = _drawn(draw, f, y, random)
    g, product, *_ = vjp(lambda f: gradient(loss, f, drawn), f)
    u = normal(tuple(f.shape), random, f)
    squares = (g * u).flatten(1).sum(1).double().square().mean()
    curved = (product(u)[0] * u).flatten(1).sum(1).double().mean()
    ratio = float(squares / curved) if curved > 0 else float("nan")
    terms = targets[0].numel() if isinstance(targets, Tensor) else 1
    for scale in (1.0, 1 / max(1, terms)):
        if scale / _APART <= ratio <= scale * _APART:
            return scale
    raise ModelError(
        f"the loss is not the negative log-likelihood of what `distribution` draws: over {len(f)} "
        f"drawn targets its squared gradients are {ratio:.3g} of its curvature, which would be 1"
        f"{f', or 1/{terms} for a mean over the {terms} targets of a row' if terms > 1 else ''}; "
        "look at factors and variances in the loss, or take fisher='exact'"
    )


def _drawn(draw: Draw, outputs: Tensor, targets: Any, generator: torch.Generator) -> Any:
    """What a function draws: on the processor, as its generator does, alike for every device."""
    drawn = draw(outputs.detach().cpu(), map_tensors(Tensor.cpu, targets), generator)
    return map_tensors(lambda leaf: leaf.to(outputs.device), drawn)


def _repeated(values: Any, rows: int, times: int) -> Any:
    return map_tensors(lambda leaf: leaf[:rows].repeat_interleave(times, 0), values)


# Random numbers --------------------------------------------------------------------------------


@dataclass(eq=False)
class Ranked:
    """Uniform numbers for some of all rows: those that a seed draws at the rows' `ranks`.

    All are drawn at once, in the order of the ranks, so that what falls to a row does not depend on
    where it is stored.
    """

    seed: int
    ranks: Int[Tensor, " n"]
    _drawn: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _first: int = 0

    def of_rows(self, first: int) -> "Ranked":
        """The numbers of the rows from a position on."""
        return Ranked(self.seed, self.ranks, self._drawn, first)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """One draw a row; another of the same shape is the same one."""
        if (each := shape[1:]) not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand((len(self.ranks), *each), generator=generator, dtype=torch.float64)
            self._drawn[each] = drawn
        return self._drawn[each][self.ranks[self._first : self._first + shape[0]]]


def uniform(shape: tuple[int, ...], generator: torch.Generator | Ranked, like: Tensor) -> Tensor:
    """On the processor, in float64: the same draws for every device, dtype and batch size."""
    if isinstance(generator, Ranked):
        return generator.uniform(shape).to(like.device)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(like.device)


def normal(shape: tuple[int, ...], generator: torch.Generator | Ranked, like: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones."""
    u = uniform(shape, generator, like).clamp(min=torch.finfo(torch.float64).eps)
    return torch.special.ndtri(u).to(like.dtype)


def _of_class(
    outputs: Float[Tensor, "n classes *t"], generator: torch.Generator | Ranked
) -> Tensor:
    shape = (len(outputs), *outputs.shape[2:])
    p = outputs.double().softmax(1)
    below = p.cumsum(1) < uniform(shape, generator, outputs).unsqueeze(1)
    drawn = below.sum(1, keepdim=True).clamp(max=outputs.shape[1] - 1)
    return (p - torch.zeros_like(p).scatter_(1, drawn, 1.0)).to(outputs.dtype)


def _of_coin(outputs: Tensor, generator: torch.Generator | Ranked) -> Tensor:
    p = outputs.double().sigmoid()
    return (p - (uniform(tuple(outputs.shape), generator, outputs) < p).double()).to(outputs.dtype)


def _of_gaussian(outputs: Tensor, generator: torch.Generator | Ranked) -> Tensor:
    return normal(tuple(outputs.shape), generator, outputs)


_ROOTS: dict[str, Callable[[Tensor, torch.Generator | Ranked], Tensor]] = {
    "categorical": _of_class,
    "gaussian": _of_gaussian,
    "bernoulli": _of_coin,
}
_FOUND = ("categorical", "gaussian")  # a coin has the curvature of some Gaussian
_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": torch.ones_like,
    "bernoulli": lambda f: f.sigmoid() * (-f).sigmoid(),
}
