r"""Gauss-Newton products from captured pairs: a few backward passes serve any number of vectors.

With $\nabla_f^2 L_i = \sum_c r_{ic} r_{ic}^\top$ and $\varphi_{ic} = J_i^\top r_{ic}$, the sum
over rows is $\sum_{ic} \varphi_{ic} \varphi_{ic}^\top$, and of a layer φ is made of its inputs and
of what root vector c sends back to it. Each vector then costs products of matrices instead of
passes through the network, and far fewer of them where positions share weights (convolutions).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.captured_blocks import Block, Total, Vectors, blocks_of
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.curvature.scratch import Scratch
from influence_dag.errors import ModelError
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.objective import Objective, Rows
from influence_dag.objective.outputs import OutputSpace

_COLUMNS = 64  # vectors at once on a processor: their shares stay in its cache
_LONG = 512  # numbers of a vector for which there is one more: it does not stay there anyway
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
    _kept: list[tuple[int, list[Block]]] = field(default_factory=list, init=False)  # and how many
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
    def _rows_kept(self) -> int:
        return sum(rows for rows, _ in self._kept)

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
        columns = max(_COLUMNS, vectors.shape[1] // _LONG)
        if vectors.device.type != "cpu":
            columns = max(1, len(vectors))
        total = torch.zeros_like(vectors, dtype=torch.float64)
        asked = [*map(Vectors, vectors.split(columns))]
        totals = [Total(part, len(asked)) for part in total.split(columns)]
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

    def _batches(self) -> Iterator[list[Block]]:
        for _, blocks in self._kept:
            yield blocks
        if self.is_kept:
            return
        rest = self.rows[self._rows_kept :]
        layout = self.captured.layout
        fisher = FisherPairs(self.objective, rest, layout, batch_size=self.batch_size)
        for rows, batch in zip(rest.batches(fisher.rows_at_once), fisher, strict=True):
            blocks = [*blocks_of(batch, layout, len(rows))]
            self._keep(blocks, len(rows))
            yield blocks

    def _keep(self, blocks: list[Block], rows: int) -> None:
        """Where there is room; after one for which there is none, no more.

        In one step with how many rows they are of: after an interrupt none is counted twice.
        """
        self._bytes_left -= sum(block.bytes for block in blocks)
        if self._bytes_left > 0:
            self._kept.append((rows, blocks))


def _add_products(blocks: list[Block], vectors: Vectors, total: Total, scratch: Scratch) -> None:
    r"""Add $\sum_{ic} (v \cdot \varphi_{ic}) \, \varphi_{ic}$, i running over one batch."""
    b, c = blocks[0].rows_and_roots
    shares = scratch.take("shares", vectors.rows, b, len(vectors.rows), c).zero_()
    for block in blocks:
        block.project(vectors, shares, scratch)
    for block in blocks:
        block.add(shares, total, scratch)
