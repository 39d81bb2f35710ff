r"""Gauss-Newton products from captured pairs: a few backward passes serve any number of vectors.

With $\nabla_f^2 L_i = \sum_c r_{ic} r_{ic}^\top$ and $\varphi_{ic} = J_i^\top r_{ic}$, the sum
over rows is $\sum_{ic} \varphi_{ic} \varphi_{ic}^\top$, and of a layer φ is made of its inputs and
of what root vector c sends back to it. Each vector then costs products of matrices instead of
passes through the network, and far fewer of them where positions share weights (convolutions).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.fisher_batches import FisherBatch, Formed
from influence_dag.curvature.kronecker_layout import KroneckerLayer, KroneckerLayout, Place
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.curvature.scratch import Scratch
from influence_dag.errors import ModelError
from influence_dag.gradients.capture import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.outputs import OutputSpace

_NUMBERS = 2**23  # of temporaries
_PIECE = 2**19  # the same in a processor's cache
_WIDE = 128  # inputs of a layer for which it does not matter where these are
_COLUMNS = 64  # vectors at once on a processor: their shares stay there as well
_WAITING = 2**21  # numbers that wait to be multiplied and added to the sum
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
        columns = _COLUMNS if vectors.device.type == "cpu" else max(1, len(vectors))
        total = torch.zeros_like(vectors, dtype=torch.float64)
        asked = [*map(_Vectors, vectors.split(columns))]
        totals = [*map(_Total, total.split(columns))]
        scratch = Scratch()
        for blocks in self._batches():
            for some, share in zip(asked, totals, strict=True):
                _add_products(blocks, some, share, scratch)
        for share in totals:
            share.finish()
        return total

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
            blocks = [*_blocks(batch, layout, len(rows))]
            self._keep(blocks, len(rows))
            yield blocks

    def _keep(self, blocks: "list[_Block]", rows: int) -> None:
        """Where there is room; after one for which there is none, no more."""
        self._bytes_left -= sum(block.bytes for block in blocks)
        if self._bytes_left > 0:
            self._kept.append(blocks)
            self._rows_kept += rows


def _add_products(
    blocks: "list[_Block]", vectors: "_Vectors", total: "_Total", scratch: Scratch
) -> None:
    r"""Add $\sum_{ic} (v \cdot \varphi_{ic}) \, \varphi_{ic}$, i running over one batch."""
    b, c = blocks[0].rows_and_roots
    shares = scratch.take("shares", vectors.rows, b, len(vectors.rows), c).zero_()
    for block in blocks:
        block.project(vectors, shares, scratch)
    for block in blocks:
        block.add(shares, total, scratch)


def _blocks(batch: FisherBatch, layout: KroneckerLayout, rows: int) -> Iterator["_Block"]:
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


class _Block(Protocol):
    """Some parameters' part of every φ; shares are of b rows, k vectors, c root vectors."""

    @property
    def bytes(self) -> int: ...

    @property
    def rows_and_roots(self) -> tuple[int, int]: ...

    def project(
        self, vectors: "_Vectors", shares: Float[Tensor, "b k c"], scratch: Scratch
    ) -> None:
        """Add this part of v · φ."""
        ...

    def add(self, shares: Float[Tensor, "b k c"], total: "_Total", scratch: Scratch) -> None:
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

    def project(
        self, vectors: "_Vectors", shares: Float[Tensor, "b k c"], scratch: Scratch
    ) -> None:
        asked = vectors.rows[:, slice(*self.place)]
        shares += (self.values.flatten(0, 1) @ asked.T).view_as(shares.mT).mT

    def add(self, shares: Float[Tensor, "b k c"], total: "_Total", scratch: Scratch) -> None:
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

    def project(
        self, vectors: "_Vectors", shares: Float[Tensor, "b k c"], scratch: Scratch
    ) -> None:
        weight = vectors.of_layer(self.layer, self.d_out)
        for some in self._pieces(len(weight)):
            a = self.a[some].flatten(0, 1)
            sent = torch.mm(a, weight.T, out=scratch.take("through", a, len(a), len(weight)))
            sent = sent.view(len(shares[some]), self.a.shape[1], shares.shape[1], self.d_out)
            by_vector = sent.transpose(1, 2).flatten(2)
            shares[some].baddbmm_(by_vector, self.g[some].mT)

    def add(self, shares: Float[Tensor, "b k c"], total: "_Total", scratch: Scratch) -> None:
        width = self.d_out * shares.shape[1]
        for some in self._pieces(width):
            a = self.a[some].flatten(0, 1)
            s = total.room(self, a, width)
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


@dataclass(frozen=True, eq=False)
class _Vectors:
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


@dataclass(frozen=True, eq=False)
class _Total:
    r"""The sum, float64, and of layers the vectors whose products $\sum s a^\top$ are to come.

    Of a few hundred rows they are one product, and one addition to as many numbers as there are.
    """

    rows: Float[Tensor, "k p"]
    _waiting: dict[KroneckerLayer, "_Waiting"] = field(default_factory=dict)

    def room(self, block: _Product, a: Float[Tensor, "n d_in"], width: int) -> Tensor:
        """Where to write the vectors s, `(n, k d_out)`, of some inputs."""
        held = self._waiting.get(block.layer)
        if held is None or held.rows + len(a) > len(held.s):
            if held is not None:
                self._add(block.layer, held)
            rows = max(len(a), _WAITING // max(1, width))
            if held is None or len(held.s) < rows:
                held = _Waiting(a.new_empty(rows, width), a.new_empty(rows, a.shape[1]))
                self._waiting[block.layer] = held
        return held.taken(a)

    def finish(self) -> None:
        """Add what waits."""
        for layer, held in self._waiting.items():
            self._add(layer, held)

    def _add(self, layer: KroneckerLayer, held: "_Waiting") -> None:
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
