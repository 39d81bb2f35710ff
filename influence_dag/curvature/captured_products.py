r"""Gauss-Newton products from captured pairs: a few backward passes serve any number of vectors.

With $\nabla_f^2 L_i = \sum_c r_{ic} r_{ic}^\top$ and $\varphi_{ic} = J_i^\top r_{ic}$, the sum
over rows is $\sum_{ic} \varphi_{ic} \varphi_{ic}^\top$, and of a layer φ is made of its inputs and
of what root vector c sends back to it. Each vector then costs products of matrices instead of
passes through the network, and far fewer of them where positions share weights (convolutions).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.kronecker_layout import KroneckerLayer, KroneckerLayout, Place
from influence_dag.curvature.kronecker_pairs import FisherBatch, FisherPairs
from influence_dag.errors import ModelError
from influence_dag.gradients.capture import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.outputs import OutputSpace

_NUMBERS = 2**23  # of temporaries


@dataclass(frozen=True)
class CapturedLayout:
    """Layers that have all parameters among them, and how many outputs a row has."""

    layout: KroneckerLayout
    outputs: int

    @classmethod
    def of(cls, objective: Objective, rows: Rows) -> "CapturedLayout | None":
        """None where a parameter's gradients take a pass through the whole network a row."""
        try:
            leaves = OutputSpace.of(objective, rows[:1]).used().leaves(objective.params)
            layout = KroneckerLayout.of(objective, rows)
        except ModelError:
            return None
        if not all(group.local for group in layout.dense):
            return None
        return cls(layout, sum(leaf.numel() for leaf in leaves))


def captured_products(
    objective: Objective,
    rows: Rows,
    layout: KroneckerLayout,
    vectors: Float[Tensor, "k p"],
    *,
    batch_size: int,
) -> Float[Tensor, "k p"] | None:
    """The sum over rows of the Gauss-Newton matrix times each vector, float64.

    None where a batch shows that layers are not captured, or that the loss is not convex in the
    outputs.
    """
    total = torch.zeros_like(vectors, dtype=torch.float64)
    try:
        for batch in FisherPairs(objective, rows, layout, batch_size=batch_size):
            blocks = [*_blocks(batch, layout)]
            shares = sum((block.projected(vectors) for block in blocks), vectors.new_zeros(()))
            for block in blocks:
                block.add(shares, total)
    except (NotCaptured, ModelError):
        return None
    return total


def _blocks(batch: FisherBatch, layout: KroneckerLayout) -> Iterator["_Block"]:
    for layer, (a, g) in zip(layout.layers, batch.pairs, strict=True):
        if a.ndim == 3 and a.shape[1] > len(g):
            dense = torch.einsum("bti,cbto->cboi", a, g).flatten(0, 1)
            weight = dense[..., :-1] if layer.bias else dense
            yield _Dense(layer.weight, (weight.mT if layer.transposed else weight).flatten(1))
            if layer.bias:
                yield _Dense(layer.bias, dense[..., -1])
        else:
            yield _Product(
                layer, a if a.ndim == 3 else a[:, None], g if g.ndim == 4 else g[:, :, None]
            )
    for group, values in zip(layout.dense, batch.dense, strict=True):
        sizes = [stop - start for start, stop in group.places]
        for place, part in zip(group.places, values.split(sizes, 1), strict=True):
            yield _Dense(place, part)


class _Block(Protocol):
    """Some parameters' part of every φ; shares are (k, c b)."""

    def projected(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k cb"]: ...

    def add(self, shares: Float[Tensor, "k cb"], out: Float[Tensor, "k p"]) -> None: ...


@dataclass(frozen=True, eq=False)
class _Dense:
    place: Place
    values: Float[Tensor, "cb size"]

    def projected(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k cb"]:
        return vectors[:, slice(*self.place)] @ self.values.T

    def add(self, shares: Float[Tensor, "k cb"], out: Float[Tensor, "k p"]) -> None:
        out[:, slice(*self.place)] += shares @ self.values


@dataclass(frozen=True, eq=False)
class _Product:
    """A layer whose gradients are cheaper as sums of products."""

    layer: KroneckerLayer
    a: Float[Tensor, "b t d_in"]
    g: Float[Tensor, "c b t d_out"]

    def projected(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k cb"]:
        found = []
        for part in vectors.split(self._at_once):
            weight = self._weights(part)
            through = torch.einsum("bti,koi->btko", self.a, weight)
            # One product a row and position: (k, o) with (o, c).
            sent = torch.einsum("btko,cbto->kcb", through, self.g)
            found.append(sent.flatten(1))
        return torch.cat(found)

    def add(self, shares: Float[Tensor, "k cb"], out: Float[Tensor, "k p"]) -> None:
        c, b = self.g.shape[:2]
        for part, target in zip(shares.split(self._at_once), out.split(self._at_once), strict=True):
            sent = torch.einsum("kcb,cbto->btko", part.view(-1, c, b), self.g)
            weight = torch.einsum("btko,bti->koi", sent, self.a)
            if self.layer.bias:
                target[:, slice(*self.layer.bias)] += weight[..., -1]
                weight = weight[..., :-1]
            weight = weight.mT if self.layer.transposed else weight
            target[:, slice(*self.layer.weight)] += weight.flatten(1)

    @property
    def _at_once(self) -> int:
        return max(1, _NUMBERS // max(1, math.prod(self.g.shape[1:])))

    def _weights(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k d_out d_in"]:
        weight, d_out = vectors[:, slice(*self.layer.weight)], self.g.shape[-1]
        shape = (-1, d_out) if self.layer.transposed else (d_out, -1)
        weight = weight.unflatten(1, shape)
        weight = weight.mT if self.layer.transposed else weight
        if not self.layer.bias:
            return weight
        return torch.cat([weight, vectors[:, slice(*self.layer.bias), None]], dim=2)
