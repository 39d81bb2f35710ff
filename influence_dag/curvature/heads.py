"""Second derivatives of losses in the outputs, times vectors that have the rows last."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.scratch import Scratch


@dataclass(frozen=True, eq=False)
class SoftmaxHead:
    r"""Second derivatives $w \, (\mathrm{diag}(p) - p p^\top)$ in the outputs, by p and w p."""

    probabilities: Float[Tensor, "c n"]
    counted: Float[Tensor, "c n"]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.probabilities, self.counted]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, scratch: Scratch
    ) -> Float[Tensor, "k c n"]:
        curved = torch.mul(self.counted[:, some], moves, out=scratch.like("curved", moves))
        through = curved.sum(dim=1, keepdim=True)
        return curved.addcmul_(self.probabilities[:, some], through, value=-1)


@dataclass(frozen=True, eq=False)
class WrittenHead:
    """Second derivatives in the outputs, one matrix a row."""

    matrices: Float[Tensor, "n c c"]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.matrices]

    def product(
        self, moves: Float[Tensor, "k c n"], some: slice, scratch: Scratch
    ) -> Float[Tensor, "k c n"]:
        curved = torch.bmm(moves.permute(2, 0, 1), self.matrices[some])
        return scratch.like("curved", moves).copy_(curved.permute(1, 2, 0))
