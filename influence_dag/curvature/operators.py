"""What every curvature answers to."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.finite import check_finite


@runtime_checkable
class Curvature(Protocol):
    """A symmetric p × p matrix, applied without necessarily being formed.

    Vectors are rows, so a batch of gradients goes in and comes out as it is stored. Both `apply`
    and `dense` raise `ModelError` rather than hand on entries that are not finite.
    """

    @property
    def size(self) -> int:
        """The number p of parameters."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The matrix times each row."""
        ...

    def dense(self) -> Float[Tensor, "p p"]:
        """The matrix itself."""
        ...


@dataclass(frozen=True, eq=False)
class DenseCurvature:
    """A curvature that is a matrix at hand, symmetric. Raises `ModelError` if it is not finite."""

    matrix: Float[Tensor, "p p"]

    def __post_init__(self) -> None:
        check_finite("the curvature", self.matrix)

    @property
    def size(self) -> int:
        return len(self.matrix)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return vectors @ self.matrix

    def dense(self) -> Float[Tensor, "p p"]:
        return self.matrix
