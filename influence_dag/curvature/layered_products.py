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

from influence_dag.curvature.layered import LayeredNetwork, LinearLayer, NetworkPass
from influence_dag.curvature.products import random_vectors
from influence_dag.curvature.scratch import Scratch
from influence_dag.objective.objective import Rows

_COLUMNS = 32  # vectors at once, and numbers in the widest of their temporaries
_NUMBERS = 2**21
_BATCHES = 4  # of autograd's size at once: there is no graph to keep of them
_KEPT_BYTES = 2**28  # of batches, for products to come
_LANES = 16  # of a register: products with fewer columns take three times as long as with these
_OUTPUTS = 64  # of a row, whose second derivatives are written out
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
    _kept: "list[_Batch]" = field(default_factory=list, init=False)
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
        floor = torch.finfo(torch.float32).eps * product.abs().max() + torch.finfo().tiny
        for place in places:
            vector[place] /= product[place].square().mean().sqrt() + floor
        return vector / vector.norm()

    def give_up(self) -> None:
        """Keep nothing, and serve no more."""
        self.serves = False
        self._kept.clear()
        self._scratch.held.clear()

    def _batches(self) -> "Iterator[_Batch]":
        yield from self._kept
        left = _KEPT_BYTES - sum(batch.bytes for batch in self._kept)
        for rows in list(self.rows.batches(_BATCHES * self.batch_size))[len(self._kept) :]:
            batch = _Batch.of(self.network, self.network.run(rows))
            left -= batch.bytes
            if left > 0:
                batch = batch.mixing()
                self._kept.append(batch)
            yield batch


@dataclass(frozen=True, eq=False)
class _Batch:
    r"""What products need of a batch; vectors come after its rows, `(n, k, width)`.

    `inputs` end with the 1 of the bias. `mixed` are the first two layers' mixed derivatives that
    the second one's gradients g make, of weights $W_{2,oj}$ and $[W_1, b_1]_{ji}$,

    $$ M_{joi} = \sum g_{2,o} \, \varphi'_j \, \tilde a_{0,i} , $$

    where they are few: no product then has to go through the rows for them.
    """

    network: LayeredNetwork
    inputs: list[Float[Tensor, "n _"]]
    gradients: list[Float[Tensor, "n _"]]
    slopes: list[Float[Tensor, "n _"]]
    bends: list[Float[Tensor, "n _"]]
    output_matrix: Float[Tensor, "n c c"]
    mixed: Float[Tensor, "j o i"] | None = None

    @classmethod
    def of(cls, network: LayeredNetwork, state: NetworkPass) -> "_Batch":
        inputs = [nn.functional.pad(a, (0, 1), value=1.0) for a in state.inputs]
        curved = state.output_matrix().contiguous()
        return cls(network, inputs, state.gradients, state.slopes, state.bends, curved)

    def mixing(self) -> "_Batch":
        """With what is summed once: for more vectors than one product's."""
        if len(self.inputs) == 1:
            return self
        g, slope, a = self.gradients[1], self.slopes[0], self.inputs[0]
        sizes = slope.shape[1], g.shape[1], a.shape[1]
        if math.prod(sizes) > _MIXED:
            return self
        pairs = (slope.unsqueeze(2) * g.unsqueeze(1)).flatten(1)
        return replace(self, mixed=(pairs.T @ a).view(sizes))

    @property
    def bytes(self) -> int:
        kept = [*self.inputs, *self.gradients, *self.slopes, *self.bends, self.output_matrix]
        return sum(each.nbytes for each in kept)

    @property
    def vectors_at_once(self) -> int:
        widest = max(max(layer.weight.shape) for layer in self.network.layers)
        rows = min(_ROWS, len(self.output_matrix))
        return max(1, min(_COLUMNS, _NUMBERS // max(1, widest * rows)))

    def add_products(
        self, vectors: Float[Tensor, "k p"], out: Float[Tensor, "k p"], scratch: Scratch
    ) -> None:
        steps = [_step_of(layer, vectors) for layer in self.network.layers]
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

    def _pieces(self, vectors: int) -> Iterator[slice]:
        """Rows whose temporaries fit into a cache; on other devices all at once."""
        rows = len(self.output_matrix)
        widest = max(len(layer.weight) for layer in self.network.layers)
        size = max(_ROWS, _PIECE // (vectors * widest))
        if self.output_matrix.device.type != "cpu":
            size = rows
        return _even(rows, size)

    def _add_rows(
        self,
        some: slice,
        steps: list[Tensor],
        sums: list[Float[Tensor, "_ k _"]],
        sent: list[Float[Tensor, "_ k _"]],
        scratch: Scratch,
    ) -> None:
        """Of some rows, to what layers' inputs and their gradients are multiplied into."""
        moves, moved = self._forward(some, steps, scratch)
        curved = scratch.like("curved", moves[-1])
        back = torch.bmm(moves[-1], self.output_matrix[some], out=curved)
        for m in range(len(steps) - 1, -1, -1):
            sums[m].flatten(1).addmm_(self.inputs[m][some].T, back.flatten(1))
            if m > self._first:
                sent[m].flatten(1).addmm_(self.gradients[m][some].T, moved[m].flatten(1))
            if m:
                back = self._back(m, some, back, steps[m], moves[m - 1], scratch)

    @property
    def _first(self) -> int:
        """The last layer of which nothing is left to be sent through the rows."""
        return 0 if self.mixed is None else 1

    def _forward(
        self, some: slice, steps: list[Tensor], scratch: Scratch
    ) -> tuple[list[Tensor], list[Tensor]]:
        """R{z} of each layer, and R{a} of its inputs, of which the first do not move."""
        moves: list[Tensor] = []
        moved: list[Tensor] = [steps[0][:0]]
        for m, (step, a) in enumerate(zip(steps, self.inputs, strict=True)):
            move = scratch.take(f"move {m}", a, len(a[some]), *step.shape[:2])
            torch.mm(a[some], step.flatten(0, 1).T, out=move.flatten(1))
            if m:
                move += self._through(m, moved[m], scratch)
            moves.append(move)
            if m < len(self.slopes):
                slope = self.slopes[m][some].unsqueeze(1)
                moved.append(torch.mul(slope, move, out=scratch.like(f"input {m}", move)))
        return moves, moved

    def _through(
        self, m: int, moved: Float[Tensor, "n k i"], scratch: Scratch
    ) -> Float[Tensor, "n k o"]:
        """A layer's weight times what its inputs move by, with zeros to fill the last register."""
        weight = self.network.layers[m].weight
        filled = -(-len(weight) // _LANES) * _LANES
        wide = nn.functional.pad(weight, (0, 0, 0, filled - len(weight)))
        sent = scratch.take(f"through {m}", moved, *moved.shape[:2], filled)
        torch.mm(moved.flatten(0, 1), wide.T, out=sent.flatten(0, 1))
        return sent[..., : len(weight)]

    def _back(
        self,
        m: int,
        some: slice,
        back: Float[Tensor, "n k o"],
        step: Float[Tensor, "k o _"],
        move: Float[Tensor, "n k i"],
        scratch: Scratch,
    ) -> Float[Tensor, "n k i"]:
        """R{g} of the layer before."""
        sent = scratch.like(f"back {m}", move)
        torch.mm(back.flatten(0, 1), self.network.layers[m].weight, out=sent.flatten(0, 1))
        if m > self._first:
            weight = step[..., :-1].transpose(0, 1).flatten(1)
            sent.flatten(1).addmm_(self.gradients[m][some], weight)
        sent.mul_(self.slopes[m - 1][some].unsqueeze(1))
        return sent.addcmul_(self.bends[m - 1][some].unsqueeze(1), move)


def _even(length: int, most: int) -> Iterator[slice]:
    """Pieces of one size, but for what division leaves."""
    size = max(1, -(-length // max(1, -(-length // most))))
    for start in range(0, length, size):
        yield slice(start, start + size)


def _step_of(layer: LinearLayer, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k o i"]:
    """The vectors' parts of a layer's weight and bias: no step of what is frozen or not there."""
    outputs, inputs = layer.weight.shape
    step = vectors.new_zeros(len(vectors), outputs, inputs + 1)
    if layer.weight_place is not None:
        step[..., :-1] = vectors[:, layer.weight_place].unflatten(1, (outputs, inputs))
    if layer.bias_place is not None:
        step[..., -1] = vectors[:, layer.bias_place]
    return step
