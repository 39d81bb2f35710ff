r"""Self-influences of many rows by a Cholesky factor, in the rows' own precision where it serves.

With $L L^\top = H + \lambda I$, $h = L^{-1} g$ and $x = L^{-\top} h$ a row's self-influence is
$\|h\|^2$, a sum without cancellation, and the length of its factor $\|x\|$. In float32 the two
triangular solves take half the time; how many digits that leaves depends on the row.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influence_dag.curvature.products import random_vectors
from influence_dag.solvers.base import of_unit_size
from influence_dag.solvers.direct import CholeskyFactor, check_damping

_PROBES = 16  # of so many, errors are told three times too small once in 10⁵ rows
_TOLERANCE = 1e-5  # of h and of x, relative to their lengths
_ROWS = 1024  # at once: more take longer to bring from memory
_FEWEST = 256  # rows that make up for what probes take
_GIVEN_UP = 0.25  # share of rows solved again above which float32 is not tried on others


@dataclass(frozen=True, eq=False)
class OwnInfluences:
    r"""$g^\top (H + \lambda I)^{-1} g$ and $\|(H + \lambda I)^{-1} g\|$ of rows, float64.

    Solves of lower precision than float64 are looked at row by row: with random vectors u,
    $h \cdot u = g \cdot L^{-\top} u$ and $x \cdot u = g \cdot (L L^\top)^{-1} u$, whose right sides
    are products in float64 once the few solves for u are. The mean square of what differs is that
    of the error. Rows that are off by more than the tolerance are solved in float64.
    """

    factor: CholeskyFactor

    def __call__(
        self, rows: Float[Tensor, "n p"], *, damping: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """`ValueError` for another damping than the factor's."""
        check_damping(self.factor.damping, damping)
        serves, found = rows.dtype != torch.float64, []
        for some in rows.split(_ROWS):
            g, units = of_unit_size(some)
            if serves and len(g) >= _FEWEST:
                h, x, refused = self._rounded_solves(g)
                serves = refused <= _GIVEN_UP * len(g)
            else:
                h, x = self._exactly(g)
            unit = units.double().squeeze(1)
            found.append((h.square_().mul_(unit.square()), x.mul_(unit)))
        own, lengths = map(torch.cat, zip(*found, strict=True))
        return own, lengths

    def _rounded_solves(
        self, g: Float[Tensor, "n p"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], int]:
        """The lengths of h and of x, and of how many rows they had to be solved for again."""
        h, x = _solves(self._rounded, g)
        found = h.norm(dim=1).double(), x.norm(dim=1).double()
        again = (~self._agrees(g, h, x, found)).nonzero().flatten()
        if len(again):
            for mine, exact in zip(found, self._exactly(g[again]), strict=True):
                mine[again] = exact
        return *found, len(again)

    def _exactly(self, g: Float[Tensor, "n p"]) -> tuple[Tensor, Tensor]:
        h, x = _solves(self.factor.cholesky, g.double())
        return h.norm(dim=1), x.norm(dim=1)

    def _agrees(
        self,
        g: Float[Tensor, "n p"],
        h: Float[Tensor, "n p"],
        x: Float[Tensor, "n p"],
        lengths: tuple[Float[Tensor, " n"], Float[Tensor, " n"]],
    ) -> Bool[Tensor, " n"]:
        u, *expected = self._probes
        told = g.double() @ torch.cat(expected, dim=1)
        found = torch.cat([h @ u, x @ u], dim=1)
        off = (found - told).unflatten(1, (2, -1)).square().mean(dim=2).sqrt()
        return (off <= _TOLERANCE * torch.stack(lengths, dim=1)).all(dim=1)

    @cached_property
    def _rounded(self) -> Float[Tensor, "p p"]:
        return self.factor.cholesky.float()

    @cached_property
    def _probes(self) -> tuple[Float[Tensor, "p m"], Float[Tensor, "p m"], Float[Tensor, "p m"]]:
        """The vectors u in float32, and what g is multiplied with to tell h · u and x · u."""
        L = self.factor.cholesky
        u = random_vectors(_PROBES, len(L)).to(L.device).T.float()
        of_h = torch.linalg.solve_triangular(L.T, u.double(), upper=True)
        _, of_x = _solves(L, u.double().T)
        return u, of_h, of_x.T


def _solves(
    L: Float[Tensor, "p p"], g: Float[Tensor, "n p"]
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
    h = torch.linalg.solve_triangular(L, g.T, upper=False)
    return h.T, torch.linalg.solve_triangular(L.T, h, upper=True).T
