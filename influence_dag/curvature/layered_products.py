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
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.curvature.layered import LayeredNetwork, LinearLayer, NetworkPass
from influence_dag.curvature.products import random_vectors
from influence_dag.objective.objective import Rows

_COLUMNS = 32  # vectors at once, and numbers in the widest of their temporaries
_NUMBERS = 2**21
_BATCHES = 4  # of autograd's size at once: there is no graph to keep of them
_KEPT_BYTES = 2**28  # of batches, for products to come
_LANES = 16  # of a register: products with fewer columns take three times as long as with these
_OUTPUTS = 64  # of a row, whose second derivatives are written out

_Step = tuple[Tensor, Tensor]  # of weight (k, o, i) and bias (k, o)


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
    _scratch: "_Scratch" = field(default_factory=lambda: _Scratch(), init=False)

    def __post_init__(self) -> None:
        self.serves = len(self.network.layers[-1].weight) <= _OUTPUTS

    def is_worth(self, vectors: int) -> bool:
        """Whether these vectors, with those before, make up for what is kept of each batch.

        A vector costs autograd about what an output's second derivatives do.
        """
        self._asked += vectors
        return self.serves and self._asked > len(self.network.layers[-1].weight)

    def products(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Float64; of a batch in the network's own precision."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for batch in self._batches():
            for start in range(0, len(vectors), batch.vectors_at_once):
                chunk = slice(start, start + batch.vectors_at_once)
                batch.add_products(vectors[chunk], total[chunk], self._scratch)
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
                self._kept.append(batch)
            yield batch


@dataclass(frozen=True, eq=False)
class _Batch:
    """What products need of a batch; vectors come after its rows, `(n, k, width)`."""

    network: LayeredNetwork
    state: NetworkPass
    output_matrix: Float[Tensor, "n c c"]

    @classmethod
    def of(cls, network: LayeredNetwork, state: NetworkPass) -> "_Batch":
        return cls(network, state, state.output_matrix().contiguous())

    @property
    def bytes(self) -> int:
        state = self.state
        kept = [*state.inputs, *state.gradients, *state.slopes, *state.bends, self.output_matrix]
        return sum(each.nbytes for each in kept)

    @property
    def vectors_at_once(self) -> int:
        widest = max(max(layer.weight.shape) for layer in self.network.layers)
        rows = len(self.output_matrix)
        return max(1, min(_COLUMNS, _NUMBERS // max(1, widest * rows)))

    def add_products(
        self, vectors: Float[Tensor, "k p"], out: Float[Tensor, "k p"], scratch: "_Scratch"
    ) -> None:
        steps = [_step_of(layer, vectors) for layer in self.network.layers]
        moves, inputs = self._forward(steps, scratch)
        back = torch.bmm(moves[-1], self.output_matrix, out=scratch.like("curved", moves[-1]))
        for m in range(len(steps) - 1, -1, -1):
            self._add_of_layer(m, back, inputs[m], out)
            if m:
                back = self._back(m, back, steps[m], moves[m - 1], scratch)

    def _forward(
        self, steps: list[_Step], scratch: "_Scratch"
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """R{z} of each layer and R{a} of its inputs, the first of which do not move."""
        moves: list[Tensor] = []
        inputs: list[Tensor | None] = [None]
        for m, ((weight, bias), a) in enumerate(zip(steps, self.state.inputs, strict=True)):
            move = scratch.take(f"move {m}", a, len(a), *weight.shape[:2])
            torch.addmm(bias.flatten(), a, weight.flatten(0, 1).T, out=move.flatten(1))
            moved = inputs[m]
            if moved is not None:
                move += self._through(m, moved, scratch)
            moves.append(move)
            if m < len(self.state.slopes):
                slope = self.state.slopes[m].unsqueeze(1)
                inputs.append(torch.mul(slope, move, out=scratch.like(f"input {m}", move)))
        return moves, inputs

    def _through(
        self, m: int, moved: Float[Tensor, "n k i"], scratch: "_Scratch"
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
        back: Float[Tensor, "n k o"],
        step: _Step,
        move: Float[Tensor, "n k i"],
        scratch: "_Scratch",
    ) -> Float[Tensor, "n k i"]:
        """R{g} of the layer before."""
        sent = scratch.like(f"back {m}", move)
        torch.mm(back.flatten(0, 1), self.network.layers[m].weight, out=sent.flatten(0, 1))
        sent.flatten(1).addmm_(self.state.gradients[m], step[0].transpose(0, 1).flatten(1))
        sent.mul_(self.state.slopes[m - 1].unsqueeze(1))
        return sent.addcmul_(self.state.bends[m - 1].unsqueeze(1), move)

    def _add_of_layer(
        self, m: int, back: Float[Tensor, "n k o"], moved: Tensor | None, out: Tensor
    ) -> None:
        layer, k = self.network.layers[m], back.shape[1]
        if layer.weight_place is not None:
            # Of few inputs the upright way takes a quarter less than its transpose.
            part = (self.state.inputs[m].T @ back.flatten(1)).unflatten(1, back.shape[1:])
            out[:, layer.weight_place].unflatten(1, (back.shape[2], -1)).add_(part.permute(1, 2, 0))
            if moved is not None:
                part = self.state.gradients[m].T @ moved.flatten(1)
                part = part.unflatten(1, (k, -1)).transpose(0, 1).flatten(1)
                out[:, layer.weight_place] += part
        if layer.bias_place is not None:
            out[:, layer.bias_place] += back.sum(0)


def _step_of(layer: LinearLayer, vectors: Float[Tensor, "k p"]) -> _Step:
    """The vectors' parts of a layer: no step of what is frozen or not there."""
    weight, bias = layer.weight_place, layer.bias_place
    shape = (len(vectors), *layer.weight.shape)
    step = vectors.new_zeros(shape) if weight is None else vectors[:, weight].reshape(shape)
    return step, vectors.new_zeros(shape[:2]) if bias is None else vectors[:, bias]


@dataclass(frozen=True, eq=False)
class _Scratch:
    """Memory of temporaries, used again: fresh pages cost more than the products in them."""

    held: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        size, held = math.prod(shape), self.held.get(name)
        if held is None or held.numel() < size:
            held = self.held[name] = like.new_empty(size)
        return held[:size].view(shape)

    def like(self, name: str, other: Tensor) -> Tensor:
        return self.take(name, other, *other.shape)
