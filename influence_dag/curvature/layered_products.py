r"""Products with the Hessian of layered networks, as products of matrices (the R-operator).

With $R\{\cdot\}$ for the derivative along V, a step of all parameters (Pearlmutter, 1994):

$$ R\{z_l\} = V_l \, a_{l-1} + W_l \, R\{a_{l-1}\}, \qquad
   R\{g_{l-1}\} = \varphi' \odot \big( W_l^\top R\{g_l\} + V_l^\top g_l \big)
   + \varphi'' \odot W_l^\top g_l \odot R\{z_{l-1}\} $$

and the product's part of $W_l$ is $\sum (R\{g_l\} \, a_{l-1}^\top + g_l \, R\{a_{l-1}\}^\top)$.
What does not depend on V is kept of each batch, so that no vector runs the network again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.curvature.heads import (
    DiagonalHead,
    FewOutputsHead,
    Head,
    SoftmaxHead,
    WrittenHead,
)
from influence_dag.curvature.layered import (
    LayeredNetwork,
    LinearLayer,
    NetworkPass,
    SoftmaxCurvature,
)
from influence_dag.curvature.products import random_vectors
from influence_dag.curvature.scratch import Scratch
from influence_dag.objective.objective import Rows

_COLUMNS = 32  # vectors at once, and numbers in the widest of their temporaries
_NUMBERS = 2**21
_BATCHES = 4  # of autograd's size at once: there is no graph to keep of them
_KEPT_BYTES = 2**28  # of batches, for products to come
_OUTPUTS = 64  # of a row, whose second derivatives are written out
_FEW_OUTPUTS = 16  # the same, of which a product a row takes longer than a pass for each
_OUTPUTS_A_VECTOR = 2  # of which that takes as long as a vector takes autograd
_MIXED = 2**17  # mixed derivatives of the first two layers, which are summed once
_ROWS = 256  # at once, on a processor, or more of few vectors
_PIECE = 2**19  # numbers in the widest of a piece's temporaries


@dataclass(eq=False)
class LayeredSum:
    """The sum over rows of second derivatives times vectors, again and again."""

    network: LayeredNetwork
    rows: Rows
    batch_size: int = field(kw_only=True)
    serves: bool = field(default=True, init=False)
    confirmed: bool = field(default=False, init=False)  # held against autograd, over all rows
    _asked: int = field(default=0, init=False)
    _kept: "list[LayeredBatch]" = field(default_factory=list, init=False)
    _scratch: Scratch = field(default_factory=Scratch, init=False)

    def __post_init__(self) -> None:
        self.serves = len(self.network.layers[-1].weight) <= _OUTPUTS

    def is_worth(self, vectors: int) -> bool:
        """Whether these vectors, with those before, make up for what is kept of each batch.

        A vector costs autograd what the second derivatives of two outputs do, or more.
        """
        self._asked += vectors
        return self.serves and _OUTPUTS_A_VECTOR * self._asked > len(self.network.layers[-1].weight)

    def products(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Float64; of a batch in the network's own precision."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for batch in self._batches():
            for some in _even(len(vectors), batch.vectors_at_once):
                batch.add_products(vectors[some], total[some], self._scratch)
        return total

    def balanced_vector(self, places: list[slice]) -> Float[Tensor, " p"]:
        """A random vector that is large where products are small, tensor by tensor.

        So no tensor's second derivatives are hidden by those of another.
        """
        (vector,) = random_vectors(1, self.network.size).to(self.network.layers[0].weight)
        (product,) = self.products(vector[None])
        floor = torch.finfo(torch.float32).eps * product.abs().max()
        if floor > 0:  # else nothing is known
            for place in places:
                vector[place] /= product[place].square().mean().sqrt() + floor
        return vector / vector.norm()

    def give_up(self) -> None:
        """Keep nothing, and serve no more."""
        self.serves = False
        self._kept.clear()
        self._scratch.held.clear()

    def _batches(self) -> "Iterator[LayeredBatch]":
        yield from self._kept
        left = _KEPT_BYTES - sum(batch.bytes for batch in self._kept)
        for rows in list(self.rows.batches(_BATCHES * self.batch_size))[len(self._kept) :]:
            batch = LayeredBatch.of(self.network, self.network.run(rows))
            left -= batch.bytes
            if left > 0:
                batch = batch.mixing()
                self._kept.append(batch)
            yield batch


@dataclass(frozen=True, eq=False)
class LayeredBatch:
    r"""What products need of a batch; its rows come last, vectors first: `(k, width, n)`.

    So what is of each row and not of each vector goes over the temporaries in the order of memory,
    and no product has a narrow layer for its inner side. `inputs` end with the 1 of the bias.
    `mixed` are the first two layers' mixed derivatives that the second one's gradients g make, of
    weights $W_{2,oj}$ and $[W_1, b_1]_{ji}$,

    $$ M_{joi} = \sum g_{2,o} \, \varphi'_j \, \tilde a_{0,i} , $$

    where they are few: no product then has to go through the rows for them.
    """

    network: LayeredNetwork
    inputs: list[Float[Tensor, "_ n"]]
    gradients: list[Float[Tensor, "_ n"]]
    slopes: list[Float[Tensor, "_ n"]]
    bends: list[Float[Tensor, "_ n"]]
    head: Head
    mixed: Float[Tensor, "j o i"] | None = None

    @classmethod
    def of(
        cls, network: LayeredNetwork, state: NetworkPass, head: Head | None = None
    ) -> "LayeredBatch":
        """`head` is the loss's part where it is not to be what a batch would have for it."""
        inputs = [nn.functional.pad(a.T, (0, 0, 0, 1), value=1.0) for a in state.inputs]
        gradients, slopes, bends = map(_rows_last, (state.gradients, state.slopes, state.bends))
        return cls(network, inputs, gradients, slopes, bends, head or _head_of(state))

    def mixing(self) -> "LayeredBatch":
        """With what is summed once: for more vectors than one product's."""
        if len(self.inputs) == 1:
            return self
        g, slope, a = self.gradients[1], self.slopes[0], self.inputs[0]
        sizes = len(slope), len(g), len(a)
        if math.prod(sizes) > _MIXED:
            return self
        pairs = (slope.unsqueeze(1) * g).flatten(0, 1)
        return replace(self, mixed=(pairs @ a.T).view(sizes))

    @property
    def bytes(self) -> int:
        kept = [*self.inputs, *self.gradients, *self.slopes, *self.bends, *self.head.tensors]
        return sum(each.nbytes for each in kept)

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[1]

    @property
    def vectors_at_once(self) -> int:
        widest = max(max(layer.weight.shape) for layer in self.network.layers)
        return max(1, min(_COLUMNS, _NUMBERS // max(1, widest * min(_ROWS, self.rows))))

    def add_products(
        self, vectors: Float[Tensor, "k p"], out: Float[Tensor, "k p"], scratch: Scratch
    ) -> None:
        steps = [step_of(layer, vectors) for layer in self.network.layers]
        sums = [step.new_zeros(step.shape[2], *step.shape[:2]) for step in steps]
        sent = [step.new_zeros(step.shape[1], len(vectors), step.shape[2] - 1) for step in steps]
        for some in self._pieces(len(vectors)):
            self._add_rows(some, steps, sums, sent, scratch)
        if self.mixed is not None:
            later = steps[1][..., :-1].permute(2, 0, 1).contiguous()
            sums[0] += torch.bmm(later, self.mixed).permute(2, 1, 0)
            sent[1] += torch.bmm(steps[0].transpose(0, 1), self.mixed.mT).permute(2, 1, 0)
        for layer, total, through in zip(self.network.layers, sums, sent, strict=True):
            if layer.weight_place is not None:
                weight = out[:, layer.weight_place].unflatten(1, (total.shape[2], -1))
                weight += total[:-1].permute(1, 2, 0)
                weight += through.transpose(0, 1)
            if layer.bias_place is not None:
                out[:, layer.bias_place] += total[-1]

    def forward(
        self, some: slice, steps: list[Tensor], scratch: Scratch
    ) -> tuple[list[Tensor], list[Tensor]]:
        """R{z} of each layer, and R{a} of its inputs, of which the first do not move."""
        moves: list[Tensor] = []
        moved: list[Tensor] = [steps[0][:0]]
        for m, (layer, step) in enumerate(zip(self.network.layers, steps, strict=True)):
            a = self.inputs[m][:, some]
            move = scratch.take(f"move {m}", a, *step.shape[:2], a.shape[1])
            torch.mm(step.flatten(0, 1), a, out=move.flatten(0, 1))
            if m:
                move.baddbmm_(layer.weight.expand(len(step), -1, -1), moved[m])
            moves.append(move)
            if m < len(self.slopes):
                slope = self.slopes[m][:, some]
                moved.append(torch.mul(slope, move, out=scratch.like(f"input {m + 1}", move)))
        return moves, moved

    def _pieces(self, vectors: int) -> Iterator[slice]:
        """Rows whose temporaries fit into a cache; on other devices all at once."""
        widest = max(len(layer.weight) for layer in self.network.layers)
        size = max(_ROWS, _PIECE // (vectors * widest))
        if self.inputs[0].device.type != "cpu":
            size = self.rows
        return _even(self.rows, size)

    def _add_rows(
        self,
        some: slice,
        steps: list[Tensor],
        sums: list[Float[Tensor, "_ k _"]],
        sent: list[Float[Tensor, "_ k _"]],
        scratch: Scratch,
    ) -> None:
        """Of some rows, to what layers' inputs and their gradients are multiplied into."""
        moves, moved = self.forward(some, steps, scratch)
        back = self.head.product(moves[-1], some, scratch.like("curved", moves[-1]))
        for m in range(len(steps) - 1, -1, -1):
            sums[m].flatten(1).addmm_(self.inputs[m][:, some], back.flatten(0, 1).T)
            if m > self._first:
                sent[m].flatten(1).addmm_(self.gradients[m][:, some], moved[m].flatten(0, 1).T)
            if m:
                back = self._back(m, some, back, steps[m], moves[m - 1], scratch)

    @property
    def _first(self) -> int:
        """The last layer of which nothing is left to be sent through the rows."""
        return 0 if self.mixed is None else 1

    def _back(
        self,
        m: int,
        some: slice,
        back: Float[Tensor, "k o n"],
        step: Float[Tensor, "k o _"],
        move: Float[Tensor, "k i n"],
        scratch: Scratch,
    ) -> Float[Tensor, "k i n"]:
        """R{g} of the layer before, in the memory of R{a}, which nobody needs any more."""
        sent = scratch.like(f"input {m}", move)
        torch.bmm(self.network.layers[m].weight.T.expand(len(step), -1, -1), back, out=sent)
        if m > self._first:
            weight = step[..., :-1].transpose(1, 2).flatten(0, 1)
            sent.flatten(0, 1).addmm_(weight, self.gradients[m][:, some])
        sent.mul_(self.slopes[m - 1][:, some])
        return sent.addcmul_(self.bends[m - 1][:, some], move)


def _head_of(state: NetworkPass) -> Head:
    """The loss's second derivatives of a batch, as its products with vectors take least."""
    if isinstance(state.output_product, SoftmaxCurvature):
        p, counted = state.output_product.probabilities, state.output_product.counted
        return SoftmaxHead(p.T.contiguous(), counted.T.contiguous())
    matrices = state.output_matrix()
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    if matrices.count_nonzero() == diagonal.count_nonzero():
        return DiagonalHead(diagonal.T.contiguous())
    if matrices.shape[1] <= _FEW_OUTPUTS:
        return FewOutputsHead(matrices.permute(1, 2, 0).contiguous())
    return WrittenHead(matrices.contiguous())


def _rows_last(tensors: list[Float[Tensor, "n _"]]) -> list[Float[Tensor, "_ n"]]:
    return [each.T.contiguous() for each in tensors]


def _even(length: int, most: int) -> Iterator[slice]:
    """Pieces of one size, but for what division leaves."""
    size = max(1, -(-length // max(1, -(-length // most))))
    for start in range(0, length, size):
        yield slice(start, start + size)


def step_of(layer: LinearLayer, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k o i"]:
    """The vectors' parts of a layer's weight and bias: no step of what is frozen or not there."""
    (outputs, inputs), W, b = layer.weight.shape, layer.weight_place, layer.bias_place
    step = vectors.new_empty(len(vectors), outputs, inputs + 1)
    step[..., :-1] = 0 if W is None else vectors[:, W].unflatten(1, (outputs, inputs))
    step[..., -1] = 0 if b is None else vectors[:, b]
    return step
