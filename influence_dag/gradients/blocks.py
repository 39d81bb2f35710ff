r"""Per-sample gradients as they are kept: pairs of a layer's input and output gradient, or dense.

For a Linear layer the gradient of one sample is $g a^\top$, so `d_in + d_out` numbers stand for
`d_in * d_out`: 230 times fewer for a network of half a million parameters. A convolution, or a
Linear applied at several positions of a sequence, sums such products over positions t.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.gradients.layouts import DenseLayout, GradientLayout, LinearLayout, joined
from influence_dag.gradients.memory import fresh
from influence_dag.gradients.products import (
    Columns,
    Segment,
    add_projected,
    dense_segments,
    outer_segments,
    runs,
    sums_written_out,
    written_at_once,
    written_out,
)

_ASSEMBLED_BYTES = 2**26  # dense gradients held at once while norms are taken


@dataclass(frozen=True, eq=False)
class LinearGradients:
    r"""Gradients $\sum_t g_t a_t^\top$ (weight) and $\sum_t g_t$ (bias) of one layer.

    `weight` and `bias` are the layer's places in θ, None where frozen or absent; a layer that is
    kept as a pair has a weight, since a bias alone takes less written out. The axis of positions t
    is there only for convolutions and sequences. A `transposed` layer's weight is (inputs,
    outputs).
    """

    name: str
    activations: Float[Tensor, "n *t d_in"]
    output_gradients: Float[Tensor, "n *t d_out"]
    weight: slice | None
    bias: slice | None
    transposed: bool = False

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, index: slice | Tensor) -> "LinearGradients":
        a, g = self.activations[index], self.output_gradients[index]
        return LinearGradients(self.name, a, g, self.weight, self.bias, self.transposed)

    def tensors(self) -> dict[str, Tensor]:
        return {
            joined(self.name, "activations"): self.activations,
            joined(self.name, "output_gradients"): self.output_gradients,
        }

    def weight_gradients(self) -> Float[Tensor, "n weights"]:
        a, g = self.activations, self.output_gradients
        if self.transposed:
            a, g = g, a
        if a.ndim == 2:
            return (g.unsqueeze(2) * a.unsqueeze(1)).flatten(1)
        return (g.transpose(1, 2) @ a).flatten(1)

    def bias_gradients(self) -> Float[Tensor, "n d_out"]:
        g = self.output_gradients
        return g if g.ndim == 2 else g.sum(1)

    def parts(self) -> list[tuple[slice, Tensor]]:
        """The dense gradients with their places in θ."""
        weight = [] if self.weight is None else [(self.weight, self.weight_gradients())]
        return weight + ([] if self.bias is None else [(self.bias, self.bias_gradients())])

    def squared_norms(self) -> Float[Tensor, " n"]:
        """Of this layer's gradients, float64; of a single product those of its vectors."""
        if self.has_positions:
            return _squared_norms(self)
        g = self.output_gradients.double().square().sum(1)
        a = self.activations.double().square().sum(1)
        return g * (a + (0 if self.bias is None else 1))

    def segments(self, numbers: int) -> Iterator[Segment]:
        """What is written out beside other layers' gradients: all but sums over positions."""
        if self.bias is not None:
            yield from dense_segments(self.bias.start, self.bias_gradients(), numbers)
        if self.weight is not None and not self.has_positions:
            yield from outer_segments(self.weight.start, *self._sides, numbers)

    def columns(self, buffer: Float[Tensor, "b n"]) -> Iterator[Columns]:
        """The rest of the dense gradients."""
        if self.weight is not None and self.has_positions:
            yield from sums_written_out(self.weight.start, *self._sides, buffer)

    @property
    def has_positions(self) -> bool:
        return self.activations.ndim > 2

    @property
    def _sides(self) -> tuple[Tensor, Tensor]:
        a, g = self.activations, self.output_gradients
        return (a, g) if self.transposed else (g, a)

    def suits_projection(self, vectors: int) -> bool:
        """Whether so many vectors take less when they are contracted with the inputs first.

        Forming g aᵀ costs d_in · d_out a row whatever the number of vectors, contracting d_out a
        row and vector: measured, they meet at a quarter to a half of d_in.
        """
        return not self.has_positions and 2 * vectors < self.activations.shape[1]

    def add_projected(self, factors: Float[Tensor, "k p"], out: Float[Tensor, "k n"]) -> None:
        """Add this layer's share of `factors @ gradients.T`."""
        if self.bias is not None:
            out.addmm_(factors[:, self.bias], self.bias_gradients().T)
        V, a, g = factors[:, self.weight], self.activations, self.output_gradients
        add_projected(V, a, g, out, transposed=self.transposed)

    def add_products(self, other: "LinearGradients", out: Float[Tensor, "k n"]) -> None:
        r"""Add $\langle g a^\top, g' a'^\top \rangle = (g \cdot g')(a \cdot a')$ of all pairs."""
        of_g = self.output_gradients @ other.output_gradients.T
        out.addcmul_(self.activations @ other.activations.T, of_g)
        if self.bias is not None:
            out += of_g


@dataclass(frozen=True, eq=False)
class DenseGradients:
    """Gradients of one parameter, written out; `slice` is its place in θ."""

    name: str
    slice: slice
    values: Float[Tensor, "n size"]
    has_positions: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> "DenseGradients":
        return DenseGradients(self.name, self.slice, self.values[index])

    def tensors(self) -> dict[str, Tensor]:
        return {joined(self.name, "dense"): self.values}

    def parts(self) -> list[tuple[Any, Tensor]]:
        return [(self.slice, self.values)]

    def squared_norms(self) -> Float[Tensor, " n"]:
        """Float64."""
        return _squared_norms(self)

    def segments(self, numbers: int) -> Iterator[Segment]:
        yield from dense_segments(self.slice.start, self.values, numbers)

    def columns(self, buffer: Float[Tensor, "b n"]) -> Iterator[Columns]:
        return iter(())

    def add_products(self, other: "DenseGradients", out: Float[Tensor, "k n"]) -> None:
        out.addmm_(self.values, other.values.T)


def _squared_norms(block: "GradientBlock") -> Float[Tensor, " n"]:
    """By writing some rows out at a time."""
    row = sum(values.nbytes for _, values in block[:1].parts())
    rows = max(1, _ASSEMBLED_BYTES // max(1, row))
    parts = (block[some].parts() for some in runs(len(block), rows))
    squares = ([values.double().square().sum(1) for _, values in some] for some in parts)
    return torch.cat([torch.stack(some).sum(0) for some in squares])


GradientBlock: TypeAlias = LinearGradients | DenseGradients


@dataclass(frozen=True, eq=False)
class Gradients:
    """Per-sample gradients of n rows, in blocks that together cover θ."""

    blocks: tuple[GradientBlock, ...]
    layout: GradientLayout

    @classmethod
    def assembled(cls, layout: GradientLayout, tensors: dict[str, Tensor]) -> "Gradients":
        """From the tensors that `tensors` named, leading axis = row, kept as the layout says."""
        return cls(tuple(_assembled(block, tensors) for block in layout.blocks), layout)

    @property
    def size(self) -> int:
        """The number p of parameters."""
        return self.layout.size

    def __len__(self) -> int:
        return len(self.blocks[0])

    def __getitem__(self, index: slice | Tensor) -> "Gradients":
        return Gradients(tuple(block[index] for block in self.blocks), self.layout)

    @cached_property
    def _example(self) -> Tensor:
        return next(iter(self.blocks[0].tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors with the row as leading axis; see `GradientLayout`."""
        return {name: t for block in self.blocks for name, t in block.tensors().items()}

    def dense(self) -> Float[Tensor, "n p"]:
        """One gradient a row."""
        out = self._example.new_zeros(len(self), self.size)
        for block in self.blocks:
            for place, values in block.parts():
                out[:, place] = values
        return out

    def norms(self) -> Float[Tensor, " n"]:
        """The length of each row's gradient, float64."""
        return torch.stack([block.squared_norms() for block in self.blocks]).sum(0).sqrt()

    def inner(
        self, factors: Float[Tensor, "k p"], out: Float[Tensor, "k n"] | None = None
    ) -> Float[Tensor, "k n"]:
        """`factors @ dense().T`, without holding the dense gradients of all rows; into `out`."""
        if out is None:
            out = fresh((len(factors), len(self)), factors)
        layers = [block for block in self.blocks if isinstance(block, LinearGradients)]
        projected = [layer for layer in layers if layer.suits_projection(len(factors))]
        others = tuple(block for block in self.blocks if block not in projected)
        Gradients(others, self.layout)._set_written_out(factors, out)
        for layer in projected:
            layer.add_projected(factors, out)
        return out

    def _set_written_out(self, factors: Float[Tensor, "k p"], out: Float[Tensor, "k n"]) -> None:
        rows, numbers = written_at_once(factors)
        rows, numbers = min(rows, out.shape[1]), min(numbers, self.size if self.blocks else 0)
        memory = fresh((numbers * rows,), factors)
        for some in runs(out.shape[1], rows):
            part, blocks = out[:, some], [block[some] for block in self.blocks]
            buffer = memory[: numbers * part.shape[1]].view(numbers, part.shape[1])
            segments = (segment for block in blocks for segment in block.segments(numbers))
            sums = (block.columns(buffer) for block in blocks)
            beta = 0  # nothing yet, whatever the memory holds
            for place, columns in chain(written_out(segments, buffer), *sums):
                part.addmm_(factors[:, place], columns, beta=beta)
                beta = 1
            if not beta:
                part.zero_()

    def products(self, other: "Gradients") -> Float[Tensor, "k n"]:
        """`dense() @ other.dense().T`; of layers kept as one product a row, by its vectors."""
        if self.layout != other.layout or any(block.has_positions for block in self.blocks):
            return other.inner(self.dense())
        out = self._example.new_zeros(len(self), len(other))
        for mine, others in zip(self.blocks, other.blocks, strict=True):
            mine.add_products(others, out)  # pyright: ignore[reportArgumentType]: of one layout
        return out


def _assembled(block: LinearLayout | DenseLayout, tensors: dict[str, Tensor]) -> GradientBlock:
    parts = [tensors[name] for name in block.row_shapes]
    if isinstance(block, DenseLayout):
        return DenseGradients(block.name, slice(block.start, block.stop), parts[0])
    weight, bias = _slice(block.weight), _slice(block.bias)
    return LinearGradients(block.name, parts[0], parts[1], weight, bias, block.transposed)


def _slice(bounds: tuple[int, int] | None) -> slice | None:
    return None if bounds is None else slice(*bounds)
