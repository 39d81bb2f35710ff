"""Curvature known through eigenpairs: what several solvers factorise into."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.solvers.base import LowRank, Solution, relative
from influence_dag.solvers.rounding import (
    check_in_range,
    check_left_out,
    indefinite_error,
    lengths_of,
    zero_share,
)

Indefinite = Literal["raise", "allow", "absolute"]


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

    Eigenvalues that are zero to rounding (`rounding.rounding`) and that λ does not lift above it
    are left out: for a b in the range of the others x is the solution of least norm, and for
    another b there is none, which is an `IndefiniteError`. Where what V leaves out is dropped, so
    are they, lifted or not: no direction of theirs is another than those that V leaves out.

    `indefinite`: whether eigenvalues with $\mu + \lambda < 0$ are an error, are used as they are
    (`"allow"`), or count by their size (`"absolute"`: $|\mu| + \lambda$ for all of them).
    `exhausted`: a basis smaller than p that leaves out eigenvalues of zero alone. `precision` is
    the curvature's, where it is known: rounding is of it or of the rows', whichever is coarser.
    `diagnostics` are tensors that are stored beside the pairs (residuals, captured share).
    """

    eigenvectors: Float[Tensor, "p rank"]
    eigenvalues: Float[Tensor, " rank"]
    complement: Literal["drop", "damping"] = "damping"
    indefinite: Indefinite = "raise"
    exhausted: bool = False
    rounding: float | None = None
    precision: torch.dtype | None = None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        pairs = {"eigenvectors": self.eigenvectors, "eigenvalues": self.eigenvalues}
        return pairs | dict(self.diagnostics)

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        r"""Solve within the basis, in its dtype; `x0` is not needed.

        Info: `rank`, the number of eigenvalues that are used; with `"absolute"` also `residual`,
        that of $|H| + \lambda I$.
        Raises `IndefiniteError` when an eigenvalue plus the damping is negative, or zero with b
        along it, and `ValueError` when a complement is to be divided by no damping.
        """
        b, (_, held) = rhs.to(self.eigenvectors.dtype), self._shifted(damping, rhs.dtype)
        x = self.low_rank(rhs, damping=damping).of(b)
        info = {**self.info, "rank": int(held.sum())}
        if self.indefinite == "absolute":
            info["residual"] = self._residual(x, b, damping).to(rhs.dtype)
        return Solution(x.to(rhs.dtype), info)

    def low_rank(self, rhs: Float[Tensor, "k p"], *, damping: float) -> LowRank:
        """The solutions in fewer numbers, in the basis's dtype. Raises as `solve` does."""
        shifted, held = self._shifted(damping, rhs.dtype)
        b = rhs.to(self.eigenvectors.dtype)
        coordinates = b @ self.eigenvectors
        inverse = torch.where(held, shifted, 1.0).reciprocal() * held
        outside, share = lengths_of(coordinates * ~held), 0.0
        if self.complement == "damping" and not self.is_square:
            if self._divides(damping, rhs.dtype):
                share = 1 / damping
            else:
                rest = b - coordinates @ self.eigenvectors.T
                outside = torch.hypot(outside, lengths_of(rest))
        if self.complement == "damping" or self.is_square:  # else the outside is dropped anyway
            zeros, asked = (
                len(self.eigenvectors) - int(held.sum()),
                rhs.to(self._coarser(rhs.dtype)),
            )
            check_in_range(outside, asked, self.eigenvalues, zeros=zeros, damping=damping)
            check_left_out(coordinates, shifted, held, asked, damping=damping)
        return LowRank(share, coordinates * (inverse - share), self.eigenvectors)

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        r"""$P^{-1} = (\mu_r + \lambda)\, V (\mu + \lambda)^{-1} V^\top + (I - V V^\top)$.

        $\mu_r$ is the smallest eigenvalue held (Frangella, Tropp & Udell 2021, eq. 5.3). Those that
        are zero to rounding, and that λ does not lift above it, are not held: dividing by them
        would blow up what the rows have along them, which is rounding as well. An `exhausted` basis
        then stays within its range.
        """
        (least, most), floor = self._ends, self._floor(rows.dtype)
        if not len(self.eigenvalues) or most + damping <= floor:
            return rows
        values, vectors = self.eigenvalues + damping, self.eigenvectors
        if least + damping <= floor:
            held = values > floor
            values, vectors = values[held], vectors[:, held]
        coordinates = rows.to(vectors.dtype) @ vectors
        if (self.is_square or self.exhausted) and damping <= self._floor(rows.dtype):
            return (((values.min() / values) * coordinates) @ vectors.T).to(rows.dtype)
        coordinates *= values.min() / values - 1
        if rows.dtype == vectors.dtype:
            return torch.addmm(rows, coordinates, vectors.T)
        return rows + (coordinates @ vectors.T).to(rows.dtype)

    def _residual(self, x: Tensor, b: Tensor, damping: float) -> Float[Tensor, " k"]:
        absolute = (x @ self.eigenvectors * self.eigenvalues.abs()) @ self.eigenvectors.T
        return relative((absolute + damping * x - b).norm(dim=1), b)

    @property
    def is_square(self) -> bool:
        """Whether it leaves nothing out."""
        p, rank = self.eigenvectors.shape
        return rank == p

    def _divides(self, damping: float, dtype: torch.dtype) -> bool:
        """Whether what the basis leaves out is divided by the damping; else it is zero."""
        if self.exhausted and damping <= self._floor(dtype):
            return False
        if damping <= 0:
            raise ValueError(
                f"damping={damping:g} cannot stand for what {len(self.eigenvalues)} eigenpairs of "
                f"{len(self.eigenvectors)} leave out; use damping > 0 or complement='drop'"
            )
        return True

    def _shifted(
        self, damping: float, dtype: torch.dtype
    ) -> tuple[Float[Tensor, " rank"], Bool[Tensor, " rank"]]:
        """Each eigenvalue with the damping, and whether it is above rounding."""
        floor = self._floor(dtype)
        values = self.eigenvalues.abs() if self.indefinite == "absolute" else self.eigenvalues
        shifted = values + damping
        size = shifted.abs() if self.indefinite == "allow" else shifted
        held = size > floor
        if self.complement == "drop" and not self.is_square:
            held &= values.abs() > floor
        if (~held & (values < -floor)).any():
            p = len(self.eigenvectors)
            dtype = self._coarser(dtype)
            raise indefinite_error(*self._ends, damping=damping, dtype=dtype, size=p)
        return shifted, held

    def _floor(self, dtype: torch.dtype) -> float:
        """The size of an eigenvalue that is zero to rounding."""
        share = zero_share(self.rounding, self._coarser(dtype), len(self.eigenvectors))
        return share * max(map(abs, self._ends))

    def _coarser(self, dtype: torch.dtype) -> torch.dtype:
        return max(dtype, self.precision or dtype, key=lambda each: torch.finfo(each).eps)

    @cached_property  # asked for at every step, and a device is asked once
    def _ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue; zeros where none is held."""
        if not len(self.eigenvalues):
            return 0.0, 0.0
        least, most = torch.stack(self.eigenvalues.aminmax()).tolist()
        return least, most

    @property
    def info(self) -> dict[str, Any]:
        """What is known before any solve: rank, negative eigenvalues, single diagnostics."""
        floor = self._floor(self.eigenvalues.dtype)
        info: dict[str, Any] = {
            "rank": int((self.eigenvalues.abs() > floor).sum()),
            "negative_eigenvalues": int((self.eigenvalues < -floor).sum()),
        }
        return info | {k: v.item() for k, v in self.diagnostics.items() if v.ndim == 0}
