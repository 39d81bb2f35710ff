r"""A batch's part of Gauss-Newton products: $v \cdot \varphi$ of each block, and into the sum."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.fisher_batches import FisherBatch, Formed
from influence_dag.curvature.kronecker_layout import KroneckerLayer, KroneckerLayout, Place
from influence_dag.curvature.scratch import Scratch

_NUMBERS = 2**23  # of temporaries
_PIECE = 2**19  # the same in a processor's cache
_WIDE = 128  # inputs of a layer for which it does not matter where these are
_WAITING, _WAITING_ROWS = 2**23, 4096  # numbers of a layer that wait to be multiplied, and rows
_WRITTEN = 2**20  # of a product that is added to the sum: what a processor's cache takes


@dataclass(frozen=True, eq=False)
class Vectors:
    """What is multiplied, and its parts of layers as matrices, each written once."""

    rows: Float[Tensor, "k p"]
    _matrices: dict[Place, Tensor] = field(default_factory=dict)

    def of_layer(self, layer: KroneckerLayer, d_out: int) -> Float[Tensor, "kdout d_in"]:
        if layer.weight not in self._matrices:
            weight = self.rows[:, slice(*layer.weight)]
            weight = weight.unflatten(1, (-1, d_out) if layer.transposed else (d_out, -1))
            weight = weight.mT if layer.transposed else weight
            if layer.bias:
                weight = torch.cat([weight, self.rows[:, slice(*layer.bias), None]], dim=2)
            self._matrices[layer.weight] = weight.flatten(0, 1).contiguous()
        return self._matrices[layer.weight]


@dataclass(eq=False)
class _Waiting:
    s: Float[Tensor, "most kdout"]
    a: Float[Tensor, "most d_in"]
    rows: int = 0

    def taken(self, a: Float[Tensor, "n d_in"]) -> Float[Tensor, "n kdout"]:
        some = slice(self.rows, self.rows + len(a))
        self.a[some] = a
        self.rows = some.stop
        return self.s[some]


@dataclass(frozen=True, eq=False)
class Total:
    r"""The sum, float64, and of layers the vectors whose products $\sum s a^\top$ are to come.

    Of a few hundred rows they are one product, and one addition to as many numbers as there are.
    """

    rows: Float[Tensor, "k p"]
    sums: int = 1  # of so many that wait at the same time
    _waiting: dict[KroneckerLayer, _Waiting] = field(default_factory=dict)

    def room(self, layer: KroneckerLayer, a: Float[Tensor, "n d_in"], width: int) -> Tensor:
        """Where to write the vectors s, `(n, k d_out)`, of some inputs."""
        held = self._waiting.get(layer)
        if held is None or held.rows + len(a) > len(held.s):
            if held is not None:
                self._add(layer, held)
            rows = max(len(a), min(_WAITING_ROWS, _WAITING // max(1, width * self.sums)))
            if held is None or len(held.s) < rows:
                held = _Waiting(a.new_empty(rows, width), a.new_empty(rows, a.shape[1]))
                self._waiting[layer] = held
        return held.taken(a)

    def finish(self) -> None:
        """Add what waits."""
        for layer, held in self._waiting.items():
            self._add(layer, held)

    def _add(self, layer: KroneckerLayer, held: _Waiting) -> None:
        """What waits, some vectors at a time."""
        s, a = held.s[: held.rows].unflatten(1, (len(self.rows), -1)), held.a[: held.rows]
        held.rows = 0
        size = max(1, _WRITTEN // max(1, s.shape[2] * a.shape[1]))
        for start in range(0, s.shape[1], size):
            some = slice(start, start + size)
            sent = s[:, some].flatten(1)  # a product with few columns takes longer
            part = (a.T @ sent).T if a.shape[1] < _WIDE else sent.T @ a
            part = part.unflatten(0, (-1, s.shape[2]))
            if layer.bias:
                self.rows[some, slice(*layer.bias)] += part[..., -1]
                part = part[..., :-1]
            part = part.mT if layer.transposed else part
            target = self.rows[some, slice(*layer.weight)].unflatten(1, part.shape[1:])
            target += part


class Block(Protocol):
    """Some parameters' part of every φ; shares are of b rows, k vectors, c root vectors."""

    @property
    def bytes(self) -> int: ...

    @property
    def rows_and_roots(self) -> tuple[int, int]: ...

    def project(self, vectors: Vectors, shares: Float[Tensor, "b k c"], scratch: Scratch) -> None:
        """Add this part of v · φ."""
        ...

    def add(self, shares: Float[Tensor, "b k c"], total: Total, scratch: Scratch) -> None:
        """Add shares times this part of φ."""
        ...


@dataclass(frozen=True, eq=False)
class _Dense:
    place: Place
    values: Float[Tensor, "b c size"]

    @property
    def bytes(self) -> int:
        return self.values.nbytes

    @property
    def rows_and_roots(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def project(self, vectors: Vectors, shares: Float[Tensor, "b k c"], scratch: Scratch) -> None:
        asked = vectors.rows[:, slice(*self.place)]
        shares += (self.values.flatten(0, 1) @ asked.T).view_as(shares.mT).mT

    def add(self, shares: Float[Tensor, "b k c"], total: Total, scratch: Scratch) -> None:
        of_roots = shares.mT.flatten(0, 1)
        total.rows[:, slice(*self.place)] += of_roots.T @ self.values.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Product:
    """A layer whose gradients are cheaper as sums of products."""

    layer: KroneckerLayer
    a: Float[Tensor, "b t d_in"]
    g: Float[Tensor, "b c tdout"]
    d_out: int

    @classmethod
    def of(
        cls, layer: KroneckerLayer, a: Float[Tensor, "b *t d_in"], g: Float[Tensor, "c b *t d_out"]
    ) -> "_Product":
        sent = g.transpose(0, 1).flatten(2)
        return cls(layer, (a if a.ndim == 3 else a[:, None]).contiguous(), sent, g.shape[-1])

    @property
    def bytes(self) -> int:
        return self.a.nbytes + self.g.nbytes

    @property
    def rows_and_roots(self) -> tuple[int, int]:
        return self.g.shape[0], self.g.shape[1]

    def project(self, vectors: Vectors, shares: Float[Tensor, "b k c"], scratch: Scratch) -> None:
        weight = vectors.of_layer(self.layer, self.d_out)
        for some in self._pieces(len(weight)):
            a = self.a[some].flatten(0, 1)
            sent = torch.mm(a, weight.T, out=scratch.take("through", a, len(a), len(weight)))
            sent = sent.view(len(shares[some]), self.a.shape[1], shares.shape[1], self.d_out)
            by_vector = sent.transpose(1, 2).flatten(2)
            shares[some].baddbmm_(by_vector, self.g[some].mT)

    def add(self, shares: Float[Tensor, "b k c"], total: Total, scratch: Scratch) -> None:
        width = self.d_out * shares.shape[1]
        for some in self._pieces(width):
            a = self.a[some].flatten(0, 1)
            s = total.room(self.layer, a, width)
            if self.a.shape[1] == 1:
                torch.bmm(shares[some], self.g[some], out=s.view(len(s), -1, self.d_out))
            else:
                sent = torch.bmm(shares[some], self.g[some])
                sent = sent.unflatten(2, (self.a.shape[1], self.d_out)).transpose(1, 2)
                s.copy_(sent.reshape(s.shape))

    def _pieces(self, width: int) -> Iterator[slice]:
        """Rows whose numbers at each position fit into a cache; elsewhere, into memory.

        Of a wide layer a number takes longer to make than to fetch.
        """
        most = _PIECE * max(1, self.a.shape[2] // _WIDE)
        most = min(_NUMBERS, most) if self.a.device.type == "cpu" else _NUMBERS
        size = max(1, most // max(1, self.a.shape[1] * width))
        for start in range(0, len(self.a), size):
            yield slice(start, min(start + size, len(self.a)))


def blocks_of(batch: FisherBatch, layout: KroneckerLayout, rows: int) -> Iterator[Block]:
    for layer, (a, g) in zip(layout.layers, batch.pairs, strict=True):
        if a.ndim == 3 and a.shape[1] > len(g):
            dense = Formed.of(a, g).matrices
            weight = dense[..., :-1] if layer.bias else dense
            yield _Dense(layer.weight, (weight.mT if layer.transposed else weight).flatten(2))
            if layer.bias:
                yield _Dense(layer.bias, dense[..., -1].clone())  # not to hold all of `dense`
        else:
            yield _Product.of(layer, a, g)
    for group, values in zip(layout.dense, batch.dense, strict=True):
        sizes = [stop - start for start, stop in group.places]
        by_row = values.unflatten(0, (-1, rows)).transpose(0, 1)
        for place, part in zip(group.places, by_row.split(sizes, 2), strict=True):
            yield _Dense(place, part.contiguous())
