"""Leading eigenpairs of the curvature, found once; a solve is two thin products."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.errors import NotConvergedError
from influence_dag.solvers.eigenbasis import Eigenbasis, stored_eigenpairs
from influence_dag.solvers.krylov import Eigenpairs, leading_eigenpairs
from influence_dag.solvers.rounding import rounding
from influence_dag.solvers.settings import Count, NotNegative, Seed, Settings
from influence_dag.study.method_defaults import ArnoldiDefaults

_KRYLOV = 4  # products a pair that are expected


@dataclass(frozen=True, kw_only=True)
class Arnoldi(Settings):
    r"""The `rank` eigenpairs of largest $|\mu|$ (Schioppa et al. 2022), by block Krylov.

    $$ x = V (D + \lambda)^{-1} V^\top b \;\left[ + (b - V V^\top b)/\lambda \right] $$

    `complement="drop"` leaves the rest out, as published; `"damping"` keeps it as λ, which is the
    better inverse: on a digits MLP at rank 50 the Spearman correlation with exact influences was
    0.73 per test row instead of 0.35. With `"drop"` pairs whose μ is zero to rounding are left out
    as well, whatever the damping: which of them a search meets is chance.

    Pairs count as found at $\lVert Hv - \mu v \rVert \le \mathtt{tol}\, |\mu_1|$ (at least
    $\max(8, \sqrt p)$ units of rounding). A search that takes more than `max_products` products,
    by default 40 a pair, raises `NotConvergedError`, or warns and keeps what there is
    (`on_failure="warn"`); so does one that ends with fewer pairs than there are. Small
    eigenproblems are solved in float64, on the processor unless `on_device`. Where all p pairs are
    asked for, they are those of the matrix itself, in float64.

    Pairs whose $\mu + \lambda$ is negative are an error, or used as they are, as published
    (`on_indefinite="allow"`).

    Stored beside the pairs: `residuals` ($\lVert Hv - \mu v \rVert / |\mu_1|$ of each),
    `captured` (their share of $\lVert H \rVert_F^2$) and `left_out` (the largest $|\mu|$ outside
    the basis, from below), the last two estimated from a few random rows.
    """

    rank: Count = ArnoldiDefaults.rank
    tol: NotNegative = ArnoldiDefaults.tol
    complement: Literal["drop", "damping"] = ArnoldiDefaults.complement
    max_products: Count | None = ArnoldiDefaults.max_products
    on_device: bool = ArnoldiDefaults.on_device
    seed: Seed = ArnoldiDefaults.seed
    on_failure: Literal["raise", "warn"] = ArnoldiDefaults.on_failure
    on_indefinite: Literal["raise", "allow"] = "raise"

    def expected_products(self, *, size: int, rows: int, damping: float) -> float:
        """Some a pair."""
        return _KRYLOV * self.rank

    def factorize(self, curvature: Curvature) -> Eigenbasis:
        if self.rank >= curvature.size:
            return self._of_matrix(curvature)
        tol = max(self.tol, rounding(curvature.dtype, curvature.size))
        pairs = leading_eigenpairs(
            curvature,
            self.rank,
            tol=tol,
            seed=self.seed,
            max_products=self.max_products or max(40 * self.rank, 400),
            small_device=curvature.device if self.on_device else torch.device("cpu"),
        )
        self._report(pairs, tol)
        diagnostics = {
            "residuals": pairs.residuals,
            "captured": torch.tensor(pairs.captured),
            "left_out": torch.tensor(pairs.left_out),
            "products": torch.tensor(pairs.products),
        }
        return self._basis(pairs.vectors.T, pairs.values, diagnostics, curvature.dtype)

    def restore(self, tensors: Mapping[str, Tensor], curvature: Curvature | None) -> Eigenbasis:
        precision = None if curvature is None else curvature.dtype
        return self._basis(*stored_eigenpairs(tensors), precision)

    def _basis(
        self,
        vectors: Tensor,
        values: Tensor,
        diagnostics: dict[str, Tensor],
        precision: torch.dtype | None,
    ) -> Eigenbasis:
        return Eigenbasis(
            vectors,
            values,
            complement=self.complement,
            indefinite=self.on_indefinite,
            precision=precision,
            diagnostics=diagnostics,
        )

    def _of_matrix(self, curvature: Curvature) -> Eigenbasis:
        """All pairs, whose residuals are rounding: no search has to meet a tolerance."""
        matrix = curvature.dense().double()
        values, vectors = torch.linalg.eigh(matrix)
        order = values.abs().argsort(descending=True)
        values, vectors = values[order], vectors[:, order]
        scale = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
        diagnostics = {
            "residuals": (matrix @ vectors - vectors * values).norm(dim=0) / scale,
            "captured": torch.tensor(1.0),
            "left_out": torch.tensor(0.0),
            "products": torch.tensor(curvature.size),
        }
        return self._basis(vectors, values, diagnostics, curvature.dtype)

    def _report(self, pairs: Eigenpairs, tol: float) -> None:
        """Of pairs that missed the tolerance, and of larger ones that the search has not met."""
        late, found = int((pairs.residuals > 2 * tol).sum()), len(pairs.values)
        larger = not pairs.has_the_largest()
        if found < self.rank:
            larger = pairs.left_out > tol * pairs.values[0].abs().item()
        if late:
            message = (
                f"{late} of {found} eigenpairs missed tol={tol:g} after {pairs.products} products "
                f"(worst residual {pairs.residuals.max():.1e}); raise tol or max_products"
            )
        elif larger:
            message = (
                f"{found} of {self.rank} eigenpairs were found with {pairs.products} products, and "
                f"one of {pairs.left_out:.2g} or more is not among them; raise max_products"
            )
        else:
            return
        if self.on_failure == "raise":
            raise NotConvergedError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
