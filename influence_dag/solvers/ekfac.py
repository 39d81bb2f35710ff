"""Kronecker-factored inverse curvature (EK-FAC, K-FAC): two small rotations and a division."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence_dag.curvature.drawn_labels import Distribution
from influence_dag.curvature.kronecker import (
    KroneckerFactors,
    KroneckerSums,
    kronecker_factors,
    kronecker_sums,
)
from influence_dag.curvature.kronecker_fisher import FisherName
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.curvature.operators import Curvature
from influence_dag.gradients.uncaptured import without_uncaptured
from influence_dag.solvers.base import Solution
from influence_dag.solvers.blocks import Restricted
from influence_dag.solvers.dampings import AutomaticDamping
from influence_dag.solvers.kronecker_blocks import DenseBlock, KroneckerBlock, restored_blocks
from influence_dag.solvers.rounding import indefinite_error
from influence_dag.solvers.settings import Seed, Settings
from influence_dag.study.method_defaults import KroneckerDefaults, check_seed_is_read


@dataclass(frozen=True, kw_only=True)
class _OfLayers(Settings):
    """What EK-FAC and K-FAC share: all but whether eigenvalues are `corrected`."""

    fisher: FisherName = KroneckerDefaults.fisher
    seed: Seed = KroneckerDefaults.seed
    distribution: Distribution | None = None

    corrected = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed_is_read(self.fisher, self.seed)

    def factorize(
        self, curvature: Curvature, *, sums: KroneckerSums | None = None
    ) -> "KroneckerFactorization":
        """Passes over the curvature's rows for their `sums`, if not at hand, and corrections.

        Raises `ValueError` for a curvature that is no mean over rows of an objective, `ModelError`
        for parameters that need too large a dense block or a loss that has no Fisher.
        """
        index = None
        if isinstance(curvature, Restricted):
            curvature, index = curvature.curvature, curvature.index

        def factorised(without: frozenset[str]) -> KroneckerFactors:
            pairs = self._pairs(curvature, index, without)
            # Sums at hand are of the layers that were captured when they were made.
            held = sums if sums is not None and sums.layout == pairs.layout else None
            return kronecker_factors(pairs, corrected=self.corrected, sums=held)

        factors = without_uncaptured(factorised)
        return KroneckerFactorization.of(factors, curvature.dtype, index)

    def sums(self, curvature: Curvature) -> KroneckerSums | None:
        """The sums over the curvature's rows that `factorize` takes, to be added and subtracted.

        None for `fisher="sampled"`: which label is drawn for a row depends on the rows before it.
        Raises as `factorize` does.
        """
        if self.fisher == "sampled":
            return None

        def sums(without: frozenset[str]) -> KroneckerSums:
            pairs = self._pairs(curvature, None, without)
            return kronecker_sums(pairs, pairs.layout)

        return without_uncaptured(sums)

    def restore(
        self, tensors: Mapping[str, Tensor], curvature: Curvature | None
    ) -> "KroneckerFactorization":
        return KroneckerFactorization.from_tensors(tensors)

    def _pairs(self, curvature: Any, index: Tensor | None, without: frozenset[str]) -> FisherPairs:
        if not (hasattr(curvature, "objective") and hasattr(curvature, "rows")):
            raise ValueError(
                f"{type(self).__name__} looks into the layers of a model; "
                f"{type(curvature).__name__} has none: give it Hessian(objective, rows) or "
                "GaussNewton(objective, rows)"
            )
        objective, rows = curvature.objective, curvature.rows
        layout = KroneckerLayout.of(objective, rows, without=without)
        size = getattr(curvature, "batch_size", FisherPairs.batch_size)
        layout = layout if index is None else layout.within(index)
        if self.distribution is not None and self.fisher != "sampled":
            raise ValueError(
                f"distribution={self.distribution!r} is what labels are drawn from, and "
                f"fisher={self.fisher!r} draws none; add fisher='sampled' or leave it out"
            )
        return FisherPairs(objective, rows, layout, self.fisher, self.seed, size, self.distribution)


@dataclass(frozen=True, kw_only=True)
class EKFAC(_OfLayers):
    r"""Eigenvalue-corrected Kronecker factors of the Fisher (George et al. 2018).

    Each Linear or Conv layer used once is $(Q_G \otimes Q_A)\, \Lambda\, (Q_G \otimes Q_A)^\top$
    with the Fisher's own diagonal Λ in the Kronecker eigenbasis; parameters elsewhere are one dense
    block a module, and what couples the blocks is left out. λ is added to the raw eigenvalues when
    solving.

    `fisher`: `"exact"` (from the outputs' Hessian: the Gauss-Newton matrix's blocks, one backward
    pass an output), `"sampled"` (labels drawn from the model with `seed`, one backward pass) or
    `"empirical"` (the data's labels; a poor curvature, never the default). Whichever curvature is
    given, a Fisher of its objective and rows is what is factorised.

    `distribution`: what labels are drawn from, `"categorical"` (logits, classes second),
    `"bernoulli"` (logits), `"gaussian"`, or `(output, target, generator) -> target` for a loss that
    is the negative log-likelihood of what it draws, or its mean over a row's targets. By default it
    is that of the loss, where that is seen.
    """


@dataclass(frozen=True, kw_only=True)
class KFAC(_OfLayers):
    r"""Kronecker factors of the Fisher: each layer's block is $G \otimes A$.

    Martens & Grosse (2015); convolutions as in Grosse & Martens (2016), sums over positions for A
    and means for G. λ is added to the products of eigenvalues, not split between the factors.
    Settings as for `EKFAC`, whose rotations it shares: one pass over the data instead of two.
    """

    corrected = False


@dataclass(frozen=True, eq=False)
class KroneckerFactorization:
    """Eigenvectors and raw eigenvalues of each block, and the sums they came from.

    The sums serve updates: those of changed rows are subtracted and added (`KroneckerSums`).
    """

    blocks: tuple[KroneckerBlock | DenseBlock, ...]
    sums: KroneckerSums

    @classmethod
    def of(
        cls, factors: KroneckerFactors, dtype: torch.dtype, index: Int[Tensor, " q"] | None
    ) -> "KroneckerFactorization":
        """In the curvature's precision; of θ[index] alone where an index is given."""
        sums = factors.sums
        if index is not None:
            sums = replace(sums, layout=sums.layout.relocated(index))
        layers = zip(sums.layout.layers, factors.bases, factors.eigenvalues, strict=True)
        blocks = [
            KroneckerBlock(
                layer, basis.activation_vectors.to(dtype), basis.gradient_vectors.to(dtype), values
            )
            for layer, basis, values in layers
        ]
        dense = [
            DenseBlock.of(group, total / sums.rows, dtype)
            for group, total in zip(sums.layout.dense, sums.dense, strict=True)
        ]
        return cls((*blocks, *dense), sums)

    def tensors(self) -> dict[str, Tensor]:
        parts = [self.sums.tensors(), *(block.tensors() for block in self.blocks)]
        return {name: tensor for part in parts for name, tensor in part.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "KroneckerFactorization":
        """The inverse of `tensors`."""
        sums = KroneckerSums.from_tensors(tensors)
        return cls(restored_blocks(tensors, sums.layout), sums)

    def solve(
        self, rhs: Float[Tensor, "k p"], *, damping: float, x0: Float[Tensor, "#k p"] | None = None
    ) -> Solution:
        r"""$Q (\Lambda + \lambda)^{-1} Q^\top b$ of each row, block by block; `x0` is not needed.

        Raises `IndefiniteError` where no damping stands in for eigenvalues that are zero.
        """
        self.check(damping, rhs.dtype)
        return Solution(self._divided(rhs, damping, 0.0), self.info)

    def check(self, damping: float, dtype: torch.dtype) -> None:
        """Raise `IndefiniteError` where the damping leaves eigenvalues at rounding."""
        ends = self.smallest_eigenvalue, self.largest_eigenvalue
        if ends[0] + damping <= torch.finfo(dtype).eps * ends[1]:
            raise indefinite_error(*ends, damping=damping, dtype=dtype)

    def precondition(self, rows: Float[Tensor, "k p"], *, damping: float) -> Float[Tensor, "k p"]:
        r"""$P^{-1} r$ with $P = F + \lambda I$; small eigenvalues are lifted.

        To $\sqrt\epsilon$ of the largest: without a damping F is often singular, and dividing by
        its rounding would leave nothing else.
        """
        floor = torch.finfo(rows.dtype).eps ** 0.5 * self.largest_eigenvalue
        floor = 0.0 if damping > floor else floor
        return self._divided(rows, damping, floor)

    def _divided(self, rows: Tensor, damping: float, floor: float) -> Tensor:
        out = torch.zeros_like(rows)
        for block in self.blocks:
            divisor = (block.eigenvalues + damping).clamp(min=floor)
            rotated = block.rotate([rows[:, slice(*place)] for place in block.places])
            block.put_back(rotated * divisor.reciprocal().to(rotated.dtype), out)
        return out

    @property
    def automatic_damping(self) -> AutomaticDamping:
        """The mean of the raw eigenvalues: the trace over p of what stands for the curvature."""
        values = torch.cat([block.eigenvalues.flatten().double() for block in self.blocks])
        return AutomaticDamping(values.mean().item(), "trace / p of the Kronecker factors")

    @cached_property  # asked for at every block, and a device is asked once
    def smallest_eigenvalue(self) -> float:
        return min(block.eigenvalues.min().item() for block in self.blocks)

    @cached_property
    def largest_eigenvalue(self) -> float:
        return max(block.eigenvalues.max().item() for block in self.blocks)

    @property
    def info(self) -> dict[str, float | int | str]:
        """What is known before any solve: which layers were captured, which modules are dense."""
        layout = self.sums.layout
        return {
            "captured_layers": ", ".join(layer.name or "model" for layer in layout.layers),
            "dense_blocks": ", ".join(group.name or "model" for group in layout.dense),
            "smallest_eigenvalue": self.smallest_eigenvalue,
            "largest_eigenvalue": self.largest_eigenvalue,
        }
