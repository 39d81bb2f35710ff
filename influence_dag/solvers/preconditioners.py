"""Cheap approximate inverses that make conjugate gradients take fewer steps."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.dampings import random_signs

PreconditionerName = Literal["none", "jacobi", "nystroem", "ekfac"]


@runtime_checkable
class Preconditioner(Protocol):
    r"""A symmetric positive definite $P \approx H + \lambda I$ with a cheap inverse."""

    def tensors(self) -> dict[str, Tensor]: ...

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        r"""$P^{-1} r$ of each row, up to a common factor."""
        ...


@runtime_checkable
class OfAllDirections(Preconditioner, Protocol):
    """One that takes rows of the range of H out of it, where H is singular."""

    @property
    def largest_eigenvalue(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Unpreconditioned:
    """P = 1."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        return rows


@dataclass(frozen=True, eq=False)
class Jacobi:
    r"""$P = \mathrm{diag}(H) + \lambda I$."""

    diagonal: Float[Tensor, " p"]

    @classmethod
    def estimate(cls, curvature: Curvature, *, probes: int, seed: int) -> "Jacobi":
        r"""$\mathrm{diag}(H) \approx \overline{v \odot H v}$ over random signs v.

        Bekas, Kokiopoulou & Saad (2007). Negative estimates count as zero.
        """
        vectors = random_signs(probes, curvature, seed)
        return cls((vectors * curvature.apply(vectors)).mean(0).clamp(min=0))

    @property
    def largest_eigenvalue(self) -> float:
        return self.diagonal.max().item()

    def tensors(self) -> dict[str, Tensor]:
        return {"diagonal": self.diagonal}

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        floor = torch.finfo(self.diagonal.dtype).eps * self.diagonal.max()
        return rows / (self.diagonal + damping).clamp(min=floor)
