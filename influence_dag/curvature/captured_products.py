r"""Gauss-Newton products from captured pairs: a few backward passes serve any number of vectors.

With $\nabla_f^2 L_i = \sum_c r_{ic} r_{ic}^\top$ and $\varphi_{ic} = J_i^\top r_{ic}$, the sum
over rows is $\sum_{ic} \varphi_{ic} \varphi_{ic}^\top$, and of a layer φ is made of its inputs and
of what root vector c sends back to it. Each vector then costs products of matrices instead of
passes through the network, and far fewer of them where positions share weights (convolutions).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.fisher_batches import FisherBatch, Formed
from influence_dag.curvature.kronecker_layout import KroneckerLayer, KroneckerLayout, Place
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.errors import ModelError
from influence_dag.gradients.capture import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.outputs import OutputSpace

_NUMBERS = 2**23  # of temporaries
_WRITTEN = 2**20  # of a product that is added to the sum: what a processor's cache takes
_KEPT_BYTES = 2**30  # of captured pairs, for products to come


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


@dataclass(eq=False)
class CapturedSum:
    """The sum over rows times vectors, again and again, as an iterative solver asks for it.

    What is captured of the first rows is kept, up to `_KEPT_BYTES`; of the others it is captured
    again each time. One that does not keep serves a single product.
    """

    objective: Objective
    rows: Rows
    captured: CapturedLayout
    batch_size: int = field(kw_only=True)
    keeps: bool = field(default=True, kw_only=True)
    serves: bool = field(default=True, init=False)
    confirmed: bool = field(default=False, init=False)  # what is kept, held against autograd
    _asked: int = field(default=0, init=False)
    _kept: "list[list[_Block]]" = field(default_factory=list, init=False)
    _rows_kept: int = field(default=0, init=False)
    _bytes_left: int = field(init=False)

    def __post_init__(self) -> None:
        self._bytes_left = _KEPT_BYTES if self.keeps else 0

    def is_worth(self, vectors: int) -> bool:
        """Whether these vectors, with those before, make up for what there is to capture.

        A vector costs autograd about what sending back one of the outputs does.
        """
        self._asked += vectors
        known = self._rows_kept > 0 or self._bytes_left <= 0
        left = self.captured.outputs * (1 - self._rows_kept / len(self.rows))
        return self.serves and (vectors if known else self._asked) > left

    @property
    def is_kept(self) -> bool:
        """Whether nothing has to be captured for the next product."""
        return self._rows_kept == len(self.rows)

    def products(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"] | None:
        """Float64; None, from then on, where a batch shows that layers are not captured, or that
        the loss is not convex in the outputs.
        """
        try:
            return self.summed(vectors)
        except (NotCaptured, ModelError):
            self.give_up()
            return None

    def summed(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """As `products`; raises `NotCaptured`, `ModelError`."""
        asked = _Vectors(vectors)
        total = _Total(torch.zeros_like(vectors, dtype=torch.float64))
        for blocks in self._batches():
            shares = sum((block.projected(asked) for block in blocks), vectors.new_zeros(()))
            for block in blocks:
                block.add(shares, total)
        return total.finished()

    def give_up(self) -> None:
        """Keep nothing, and serve no more."""
        self.serves = False
        self._kept.clear()

    def _batches(self) -> "Iterator[list[_Block]]":
        yield from self._kept
        if self.is_kept:
            return
        rest = self.rows[self._rows_kept :]
        layout = self.captured.layout
        fisher = FisherPairs(self.objective, rest, layout, batch_size=self.batch_size)
        for rows, batch in zip(rest.batches(fisher.rows_at_once), fisher, strict=True):
            blocks = [*_blocks(batch, layout)]
            self._keep(blocks, len(rows))
            yield blocks

    def _keep(self, blocks: "list[_Block]", rows: int) -> None:
        """Where there is room; after one for which there is none, no more."""
        self._bytes_left -= sum(block.bytes for block in blocks)
        if self._bytes_left > 0:
            self._kept.append(blocks)
            self._rows_kept += rows


def _blocks(batch: FisherBatch, layout: KroneckerLayout) -> Iterator["_Block"]:
    for layer, (a, g) in zip(layout.layers, batch.pairs, strict=True):
        if a.ndim == 3 and a.shape[1] > len(g):
            dense = Formed.of(a, g).matrices.transpose(0, 1).flatten(0, 1)
            weight = dense[..., :-1] if layer.bias else dense
            yield _Dense(layer.weight, (weight.mT if layer.transposed else weight).flatten(1))
            if layer.bias:
                yield _Dense(layer.bias, dense[..., -1].clone())  # not to hold all of `dense`
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

    @property
    def bytes(self) -> int: ...

    def projected(self, vectors: "_Vectors") -> Float[Tensor, "k cb"]: ...

    def add(self, shares: Float[Tensor, "k cb"], total: "_Total") -> None: ...


@dataclass(frozen=True, eq=False)
class _Dense:
    place: Place
    values: Float[Tensor, "cb size"]

    @property
    def bytes(self) -> int:
        return self.values.nbytes

    def projected(self, vectors: "_Vectors") -> Float[Tensor, "k cb"]:
        return vectors.rows[:, slice(*self.place)] @ self.values.T

    def add(self, shares: Float[Tensor, "k cb"], total: "_Total") -> None:
        total.rows[:, slice(*self.place)] += shares @ self.values


@dataclass(frozen=True, eq=False)
class _Product:
    """A layer whose gradients are cheaper as sums of products."""

    layer: KroneckerLayer
    a: Float[Tensor, "b t d_in"]
    g: Float[Tensor, "c b t d_out"]

    @property
    def bytes(self) -> int:
        return self.a.nbytes + self.g.nbytes

    def projected(self, vectors: "_Vectors") -> Float[Tensor, "k cb"]:
        found = []
        for weight in vectors.of_layer(self.layer, self.g.shape[-1]).split(self._at_once):
            through = torch.einsum("bti,koi->btko", self.a, weight)
            # One product a row and position: (k, o) with (o, c).
            sent = torch.einsum("btko,cbto->kcb", through, self.g)
            found.append(sent.flatten(1))
        return torch.cat(found)

    def add(self, shares: Float[Tensor, "k cb"], total: "_Total") -> None:
        c, b = self.g.shape[:2]
        sent = torch.einsum("kcb,cbto->btko", shares.view(-1, c, b), self.g)
        total.wait(self.layer, sent.flatten(0, 1), self.a.flatten(0, 1))

    @property
    def _at_once(self) -> int:
        return max(1, _NUMBERS // max(1, math.prod(self.g.shape[1:])))


@dataclass(frozen=True, eq=False)
class _Vectors:
    """What is multiplied, and its parts of layers as matrices, each written once."""

    rows: Float[Tensor, "k p"]
    _matrices: dict[Place, Tensor] = field(default_factory=dict)

    def of_layer(self, layer: KroneckerLayer, d_out: int) -> Float[Tensor, "k d_out d_in"]:
        if layer.weight not in self._matrices:
            weight = self.rows[:, slice(*layer.weight)]
            weight = weight.unflatten(1, (-1, d_out) if layer.transposed else (d_out, -1))
            weight = weight.mT if layer.transposed else weight
            if layer.bias:
                weight = torch.cat([weight, self.rows[:, slice(*layer.bias), None]], dim=2)
            self._matrices[layer.weight] = weight.contiguous()
        return self._matrices[layer.weight]


@dataclass(frozen=True, eq=False)
class _Total:
    r"""The sum, float64, and of layers the vectors whose products $\sum s a^\top$ are to come.

    Of a few hundred rows they are one product, and one addition to as many numbers as there are.
    """

    rows: Float[Tensor, "k p"]
    _waiting: dict[KroneckerLayer, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def wait(
        self, layer: KroneckerLayer, s: Float[Tensor, "n k d_out"], a: Float[Tensor, "n d_in"]
    ) -> None:
        held = self._waiting.setdefault(layer, [])
        held.append((s, a))
        if sum(each.numel() for each, _ in held) > _NUMBERS:
            self._add(layer, held)

    def finished(self) -> Float[Tensor, "k p"]:
        for layer, held in self._waiting.items():
            self._add(layer, held)
        return self.rows

    def _add(self, layer: KroneckerLayer, held: list[tuple[Tensor, Tensor]]) -> None:
        """What waits, some vectors at a time."""
        if not held:
            return
        s, a = (torch.cat(parts) for parts in zip(*held, strict=True))
        held.clear()
        size = max(1, _WRITTEN // max(1, s.shape[2] * a.shape[1]))
        for start in range(0, s.shape[1], size):
            some = slice(start, start + size)
            part = (s[:, some].flatten(1).T @ a).unflatten(0, (-1, s.shape[2]))
            if layer.bias:
                self.rows[some, slice(*layer.bias)] += part[..., -1]
                part = part[..., :-1]
            part = part.mT if layer.transposed else part
            target = self.rows[some, slice(*layer.weight)].unflatten(1, part.shape[1:])
            target += part
