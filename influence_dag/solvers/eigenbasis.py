"""Curvature known through eigenpairs: what several solvers factorise into."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.solvers.base import Solution, indefinite_error


def stored_eigenpairs(
    tensors: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Eigenvectors, eigenvalues and diagnostics from the tensors of an `Eigenbasis`."""
    diagnostics = dict(tensors)
    vectors, values = diagnostics.pop("eigenvectors"), diagnostics.pop("eigenvalues")
    return vectors, values, diagnostics


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    r"""Curvature as $V \mathrm{diag}(\mu) V^\top$ with orthonormal columns in $V$.

    What $V$ leaves out is dropped, or kept as the damping alone:

    $$ x = V (\mu + \lambda)^{-1} V^\top b \;\left[ + (b - V V^\top b) / \lambda \right] $$

    `indefinite`: whether eigenvalues with $\mu + \lambda < 0$ are an error or are used as they are.
    `diagnostics` are tensors that are stored beside the pairs (residuals, captured share).
    """

    eigenvectors: Float[Tensor, "p rank"]
    eigenvalues: Float[Tensor, " rank"]
    complement: Literal["drop", "damping"] = "damping"
    indefinite: Literal["raise", "allow"] = "raise"
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        pairs = {"eigenvectors": self.eigenvectors, "eigenvalues": self.eigenvalues}
        return pairs | dict(self.diagnostics)

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        """Solve within the basis, in its dtype; `x0` is not needed.

        Raises `IndefiniteError` when an eigenvalue plus the damping is not above rounding, and
        `ValueError` when a complement is to be divided by no damping.
        """
        shifted = self._shifted(damping, rhs.dtype)
        b = rhs.to(self.eigenvectors.dtype)
        coordinates = b @ self.eigenvectors
        x = (coordinates / shifted) @ self.eigenvectors.T
        if self._has_complement:
            x += (b - coordinates @ self.eigenvectors.T) / damping
        return Solution(x.to(rhs.dtype), self.info)

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        r"""$P^{-1} = (\mu_r + \lambda)\, V (\mu + \lambda)^{-1} V^\top + (I - V V^\top)$.

        $\mu_r$ is the smallest eigenvalue held (Frangella, Tropp & Udell 2021, eq. 5.3).
        """
        if not len(self.eigenvalues):
            return rows
        scale = (self.eigenvalues.min() + damping) / (self.eigenvalues + damping) - 1
        coordinates = rows @ self.eigenvectors
        return rows + (coordinates * scale) @ self.eigenvectors.T

    @property
    def _has_complement(self) -> bool:
        p, rank = self.eigenvectors.shape
        return self.complement == "damping" and rank < p

    def _shifted(self, damping: float, dtype: torch.dtype) -> Float[Tensor, " rank"]:
        if self._has_complement and damping <= 0:
            raise ValueError(
                f"damping={damping:g} cannot stand for what {len(self.eigenvalues)} eigenpairs of "
                f"{len(self.eigenvectors)} leave out; use damping > 0 or complement='drop'"
            )
        shifted = self.eigenvalues + damping
        if len(shifted) and not self._usable(shifted, dtype):
            ends = self.eigenvalues.min().item(), self.eigenvalues.max().item()
            raise indefinite_error(*ends, damping=damping, dtype=dtype)
        return shifted

    def _usable(self, shifted: Tensor, dtype: torch.dtype) -> bool:
        floor = torch.finfo(dtype).eps * self.eigenvalues.abs().max()
        measured = shifted.abs() if self.indefinite == "allow" else shifted
        return bool(measured.min() > floor)

    @property
    def info(self) -> dict[str, float | int]:
        """What is known before any solve: rank, negative eigenvalues, single diagnostics."""
        info: dict[str, float | int] = {
            "rank": len(self.eigenvalues),
            "negative_eigenvalues": int((self.eigenvalues < 0).sum()),
        }
        return info | {k: v.item() for k, v in self.diagnostics.items() if v.ndim == 0}
