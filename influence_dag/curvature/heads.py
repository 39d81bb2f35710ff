"""Second derivatives of losses in the outputs, times vectors that have the rows last."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head(ABC):
    """A loss's second derivatives in a batch's outputs."""

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept of the batch."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    @abstractmethod
    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        """Times moves of the outputs of some rows, which may be written over, in `out`."""


@dataclass(frozen=True, eq=False)
class SoftmaxHead(Head):
    r"""Second derivatives $w \, (\mathrm{diag}(p) - p p^\top)$ in the outputs, by p and w p.

    They are blind to a move that all outputs share. Less that of each row's `likeliest` one, the
    others' are what little of its own is left where p is almost 1, to all their digits.
    """

    probabilities: Float[Tensor, "c n"]
    counted: Float[Tensor, "c n"]
    likeliest: Int[Tensor, "1 n"] = field(init=False)

    def __post_init__(self) -> None:
        likeliest = self.probabilities.argmax(dim=0, keepdim=True)
        object.__setattr__(self, "likeliest", likeliest)

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        moves -= moves.gather(1, self.likeliest[:, some].expand(len(moves), -1, -1))
        curved = torch.mul(self.counted[:, some], moves, out=out)
        through = curved.sum(dim=1, keepdim=True)
        return curved.addcmul_(self.probabilities[:, some], through, value=-1)


@dataclass(frozen=True, eq=False)
class WrittenHead(Head):
    """Second derivatives in the outputs, one matrix a row."""

    matrices: Float[Tensor, "n c c"]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        curved = torch.bmm(moves.permute(2, 0, 1), self.matrices[some])
        return out.copy_(curved.permute(1, 2, 0))


@dataclass(frozen=True, eq=False)
class FewOutputsHead(Head):
    """Second derivatives in so few outputs that a pass for each is less than a product a row."""

    matrices: Float[Tensor, "c c n"]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        first, *others = self.matrices[..., some]
        torch.mul(first, moves[:, :1], out=out)
        for c, column in enumerate(others, 1):
            out.addcmul_(column, moves[:, c : c + 1])
        return out


@dataclass(frozen=True, eq=False)
class DiagonalHead(Head):
    """Second derivatives in the outputs of a loss that is a sum over them (mse, BCE)."""

    diagonal: Float[Tensor, "c n"]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        return torch.mul(self.diagonal[:, some], moves, out=out)


@dataclass(frozen=True, eq=False)
class CalledHead(Head):
    """As a function of vectors `(k, n, c)` over all rows of a batch, nothing written out."""

    output_product: Callable[[Float[Tensor, "k n c"]], Float[Tensor, "k n c"]]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, out: Float[Tensor, "k c n"]
    ) -> Float[Tensor, "k c n"]:
        return out.copy_(self.output_product(moves.transpose(1, 2)).transpose(1, 2))
