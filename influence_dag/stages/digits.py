r"""How many digits a sum over rows keeps when it follows a change of rows by the difference.

$S' = S - R + A$ is exact to the rounding of its terms: a row that was $10^8$ times too large
leaves an error of $10^{-16} \cdot 10^{16}$ behind when it goes. So a relative error bound travels
with each sum, from version to version, and a sum above the limit is formed over all rows again.

Errors are measured entry by entry against $\sqrt{d_i d_j}$, d being the sum's diagonal (by
Cauchy–Schwarz no entry of a positive semi-definite sum is larger), so that parameters of small
curvature are held to their own size and not to that of the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature import Curvature

LIMIT = 1e-10  # relative error that a sum may have gathered by differences, in float64
_EACH = 16  # units of rounding that one difference may cost, relative to its terms
_FLOOR = 1e-12  # of the largest diagonal entry: below, errors count relative to this
_PROBES = 2


@dataclass(frozen=True)
class Digits:
    """What is lost of a sum at most, in a precision in which rows are differentiated."""

    dtype: torch.dtype

    @property
    def limit(self) -> float:
        """Above this all rows are summed again. Single precision knows no more of a row itself."""
        return max(LIMIT, 4 * _EACH * torch.finfo(self.dtype).eps)

    def after(
        self,
        error: float,
        before: Float[Tensor, "d d"],
        parts: Sequence[Float[Tensor, "d d"]],
        total: Float[Tensor, "d d"],
    ) -> float:
        """The bound of `total`, made from `before` (whose bound is `error`) and what came and went.

        A sum that was formed over all rows has the bound 0: its own rounding is nobody's loss.
        """
        old, new = _scale(before), _scale(total)
        lost = error * old + _EACH * torch.finfo(torch.float64).eps * old
        for part in parts:
            lost = lost + _EACH * torch.finfo(self.dtype).eps * part.diagonal().abs().double()
        bound = float((lost / new).max()) if len(new) else 0.0
        return bound if bound == bound else torch.inf

    def measured(self, total: Float[Tensor, "p p"], curvature: Curvature, count: float) -> float:
        """The error that random products over all rows show, relative to the product.

        Signs alone are random, so that the error of a single entry is seen in full.
        """
        root = _scale(total).sqrt()
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (_PROBES, len(root)), generator=generator) * 2 - 1
        probes = signs.to(root) / root
        wanted = curvature.apply(probes.to(curvature.dtype)).double() * count / root
        seen = (probes @ total) / root
        error = float(((seen - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1)).max())
        return error if error == error else torch.inf

    @property
    def of_products(self) -> float:
        """What random products may differ by: they round as well."""
        return max(LIMIT, 1024 * torch.finfo(self.dtype).eps)

    def is_semidefinite(self, total: Float[Tensor, "d d"]) -> bool:
        """Whether a sum of squares still is one, to within the limit."""
        shifted = total.double().clone()
        shifted.diagonal().add_(_scale(total) * self.limit)
        return not int(torch.linalg.cholesky_ex(shifted).info)


def _scale(total: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """The diagonal, positive: no entry counts as smaller than a small part of the largest."""
    diagonal = total.diagonal().abs().double()
    largest = diagonal.max() if len(diagonal) else diagonal.sum()
    return diagonal.clamp(min=float(largest) * _FLOOR or torch.finfo(torch.float64).tiny)
