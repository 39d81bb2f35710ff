r"""What a batch of rows adds to Kronecker factors: each layer's pair, or matrices formed of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Measured: multiply-adds in the time of gathering a number of a pair of positions, and in that of
# writing and squaring a number of one sample's matrix.
_GATHERING, _FORMING = 24, 16


@dataclass(frozen=True, eq=False)
class Formed:
    r"""Each row's matrices $\sum_t g_{tc} \tilde a_t^\top$: fewer numbers than many positions."""

    matrices: Float[Tensor, "b c d_out d_in"]

    @classmethod
    def of(cls, a: Float[Tensor, "b t d_in"], g: Float[Tensor, "c b t d_out"]) -> "Formed":
        return cls(torch.bmm(columns_of(g), a).unflatten(1, (len(g), -1)))


Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class FisherBatch:
    r"""What one batch of b rows adds to each block, for c root vectors a row.

    `pairs`, a layer each: inputs $\tilde a$ `(b, [t,] d_in)`, a 1 appended for the bias, and
    gradients $g_c$ `(c, b, [t,] d_out)`. `dense`, a group each: gradients `(c b, size)`. Both
    gradients are times the roots of the rows' weights, where there are some; `rows` is the sum of
    the weights.
    """

    rows: float
    pairs: list[Pair]
    dense: list[Tensor]
    weights: Float[Tensor, " b"] | None = None

    def root_weighted(self, a: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Inputs times the roots of the rows' weights."""
        if self.weights is None:
            return a
        return a * self.weights.to(a.dtype).sqrt().reshape(-1, *[1] * (a.ndim - 1))

    @property
    def numbers(self) -> int:
        """How many are held."""
        return sum(part.numel() for parts in (*self.pairs, self.dense) for part in parts)


@dataclass(frozen=True, eq=False)
class CondensedBatch:
    """Enough of a batch for eigenvalues: matrices in the place of pairs that are more numbers."""

    rows: float
    pairs: list[Pair | Formed]

    @classmethod
    def of(cls, batch: FisherBatch) -> "CondensedBatch":
        return cls(batch.rows, [_condensed(*pair) for pair in batch.pairs])

    @property
    def numbers(self) -> int:
        """How many are held."""
        held = [(each.matrices,) if isinstance(each, Formed) else each for each in self.pairs]
        return sum(part.numel() for parts in held for part in parts)


def _condensed(a: Tensor, g: Tensor) -> Pair | Formed:
    if a.ndim == 2 or by_positions(a, g):
        return a, g
    of_row = len(g) * g.shape[3] * a.shape[2]
    return Formed.of(a, g) if of_row * len(a) < a.numel() + g.numel() else (a, g)


def by_positions(a: Float[Tensor, "b t d_in"], g: Float[Tensor, "c b t d_out"]) -> bool:
    """Whether pairs of positions are fewer operations than matrices of each row."""
    c, t, (d_in, d_out) = len(g), a.shape[1], (a.shape[2], g.shape[3])
    by_pairs = t * (t + 1) / 2 * (d_in * d_out + _GATHERING * (d_in + c * d_out))
    return by_pairs < c * d_in * d_out * (t + _FORMING)


# A convolution's positions are last in memory. Whatever is made of them is made as they lie: to
# move them takes longer than to multiply them.


def with_positions_last(
    parts: Sequence[Float[Tensor, "b d_out t"]],
) -> Float[Tensor, "c b t d_out"]:
    """The gradients of c root vectors as one tensor that lies as `columns_of` wants it."""
    return torch.stack(list(parts), 1).permute(1, 0, 3, 2)


def columns_of(g: Float[Tensor, "c b t d_out"]) -> Float[Tensor, "b co t"]:
    """For each row all root vectors' gradients, positions last."""
    return g.permute(1, 0, 3, 2).flatten(1, 2)


def gram(values: Float[Tensor, "*n d"]) -> Float[Tensor, "d d"]:
    """The sum of outer products, float64."""
    wide = _positions_last(values)
    if wide is None:
        flat = values.flatten(0, -2)
        return (flat.T @ flat).double()
    wide = wide.flatten(0, -3)
    return torch.addbmm(wide.new_zeros(2 * wide.shape[1:2]), wide, wide.mT).double()


def combined(r: Float[Tensor, " c"], g: Float[Tensor, "c b ..."]) -> Float[Tensor, "b ..."]:
    r"""$\sum_c r_c g_c$."""
    wide = _positions_last(g)
    if wide is None:
        return (r @ g.flatten(1)).reshape(g.shape[1:])
    return (r @ wide.flatten(2)).unflatten(1, wide.shape[2:]).mT


def with_one(a: Float[Tensor, "b *t d"]) -> Float[Tensor, "b *t d_in"]:
    """A 1 appended, for the bias."""
    wide = _positions_last(a)
    if wide is not None:
        return torch.cat([wide, wide.new_ones(len(wide), 1, wide.shape[2])], dim=1).mT
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)


def without(rows: Bool[Tensor, " b"] | None, a: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Inputs with 0 for these rows."""
    return a if rows is None else a.masked_fill(rows.view(-1, *[1] * (a.ndim - 1)), 0)


def _positions_last(values: Tensor) -> Tensor | None:
    """`(b, d, t)` or `(b, c, d, t)` as it lies in memory; None where it lies as its shape says."""
    if values.ndim < 3 or values.is_contiguous():
        return None
    wide = values.mT if values.ndim == 3 else values.permute(1, 0, 3, 2)
    return wide if wide.is_contiguous() else None
