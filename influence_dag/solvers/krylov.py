"""Block Krylov: the eigenpairs of largest magnitude from products with blocks of rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.operators import Curvature
from influence_dag.solvers.base import random_rows
from influence_dag.solvers.rounding import rounding

_PROBES = 8  # rows that look for what a converged basis has missed
_PROBE_STEPS = 3
_FEWEST, _MOST = 4, 7  # blocks of wanted pairs: the more, the fewer products
_WIDTH = 8  # rows of a block from which on those are the more: fewer leave registers empty
_LONGEST = 4  # basis rows per wanted pair, above which the basis is compressed
_UNSEEN = 8  # blocks at most between two looks at the residuals
_MARGIN = 1e-3  # of an estimate of what was left out, over the smallest pair
_TINY = torch.finfo(torch.float64).tiny
_COMBINATIONS = 4  # of pairs, of which products are taken to confirm all residuals


_Ritz = tuple[Tensor, Tensor, Tensor]  # values (m), rotation (m, m), residual norms (m)


class Eigenpairs(NamedTuple):
    r"""Pairs $H v = \mu v$ in descending order of $|\mu|$, and how good they are."""

    vectors: Float[Tensor, "rank p"]
    values: Float[Tensor, " rank"]
    residuals: Float[Tensor, " rank"]
    left_out: float
    captured: float
    products: int

    def has_the_largest(self) -> bool:
        """Whether none is left out that is larger than one that is here, and more than rounding."""
        zero = rounding(self.vectors.dtype, self.vectors.shape[1]) * self.values[0].abs()
        least = torch.maximum((1 + _MARGIN) * self.values[-1].abs(), zero)
        return self.left_out <= least.item()


@dataclass(eq=False)
class Subspace:
    r"""Orthonormal rows V and $T = V H V^\top$, grown by a block at a time.

    $H V^\top = V^\top T + W^\top E$: after a step, what leaves the space is `coupling` times
    `block`, the rows that come next. Rows lie one after another in memory: orthogonalisation is
    two long GEMMs. T, and everything small, is float64 on `small_device`.
    """

    curvature: Curvature
    basis: Float[Tensor, "m p"]
    projected: Float[Tensor, "m m"]
    block: Float[Tensor, "next p"]
    coupling: Float[Tensor, "next last"]
    products: int = 0

    @classmethod
    def start(cls, curvature: Curvature, block: Tensor, small_device: torch.device) -> "Subspace":
        small = torch.zeros(len(block), 0, dtype=torch.float64, device=small_device)
        return cls(curvature, block[:0], small[:0], block, small)

    def grow(self) -> None:
        """Take in the block, multiply it and orthogonalise its image twice."""
        image = self.curvature.apply(self.block)
        self.products += len(image)
        self.basis = torch.cat([self.basis, self.block])
        overlap = image @ self.basis.T
        self._extend(overlap.to(self.projected))
        self._follow(image - overlap @ self.basis)

    def ritz(self) -> "_Ritz":
        r"""Values by descending magnitude, rotations in columns, residual norms."""
        values, rotation = torch.linalg.eigh(self.projected)
        order = values.abs().argsort(descending=True)
        values, rotation = values[order], rotation[:, order]
        last = rotation[len(rotation) - self.coupling.shape[1] :]
        return values, rotation, (self.coupling @ last).norm(dim=0)

    def distance(self, rank: int, tol: float) -> float:
        """The worst residual of the leading pairs over the tolerance: there at 1."""
        values, _, residuals = self.ritz()
        return (residuals[:rank].max() / (tol * values[0].abs()).clamp(min=_TINY)).item()

    def residuals(
        self, vectors: Float[Tensor, "rank p"], ritz: "_Ritz", tol: float, seed: int
    ) -> Float[Tensor, " rank"]:
        r"""$\lVert H v - \mu v \rVert$ of the leading Ritz vectors.

        $H V^\top = V^\top T + W^\top E$ says what they are. That this has held to rounding is seen
        in products of a few random combinations of all pairs; where it has not, each pair has one.
        """
        rank, place = len(vectors), {"dtype": vectors.dtype, "device": vectors.device}
        values, rotation, lengths = ritz
        values = values[:rank].to(vectors)
        last = rotation[len(rotation) - self.coupling.shape[1] :, :rank]
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(_COMBINATIONS, rank, generator=generator, dtype=torch.float64).to(**place)
        outside = (self.coupling @ last).T.to(vectors) @ self.block
        off = self.curvature.apply(u @ vectors) - (u * values) @ vectors - u @ outside
        error = off.norm() / _COMBINATIONS**0.5
        if error <= tol * values[0].abs() / 2:
            return lengths[:rank].to(vectors).hypot(error / rank**0.5)
        return (self.curvature.apply(vectors) - values[:, None] * vectors).norm(dim=1)

    def compress(self, keep: int) -> None:
        """Keep the leading Ritz vectors only; the space goes on from the same block."""
        values, rotation, _ = self.ritz()
        self.basis = rotation[:, :keep].T.to(self.basis) @ self.basis
        self.projected = torch.diag(values[:keep])

    def refresh(self, seed: int) -> None:
        """Random rows beside the block: directions that it cannot reach, copies of eigenvalues."""
        rows = min(_PROBES, self.curvature.size - len(self.basis) - len(self.block))
        basis = torch.cat([self.basis, self.block])
        self.block = torch.cat([self.block, orthogonal_rows(basis, rows, seed)])

    def _extend(self, overlap: Float[Tensor, "b m"]) -> None:
        old = len(self.projected)
        grown = self.projected.new_zeros(overlap.shape[1], overlap.shape[1])
        grown[:old, :old] = self.projected
        grown[old:] = overlap
        grown[:, old:] = overlap.T
        square = overlap[:, old:]
        grown[old:, old:] = (square + square.T) / 2
        self.projected = grown

    def _follow(self, image: Float[Tensor, "b p"]) -> None:
        """The orthonormal rows that the image adds, none where it adds only rounding."""
        # Upright: LAPACK takes four times as long for the same lying down.
        block, lengths, left = torch.linalg.svd(image.T, full_matrices=False)
        block, left = block.T, left.T
        smallest = 10 * torch.finfo(image.dtype).eps * self.projected.abs().max()
        held = lengths > smallest.to(lengths)
        held &= torch.arange(len(held), device=held.device) < image.shape[1] - len(self.basis)
        if not held.all():
            block, left, lengths = block[held], left[:, held], lengths[held]
        block = block - (block @ self.basis.T) @ self.basis
        self.block = torch.linalg.qr(block.T).Q.T.contiguous()
        triangle = self.block @ block.T
        self.coupling = (triangle @ (left * lengths).T).to(self.projected)


def orthogonal_rows(basis: Float[Tensor, "m p"], rows: int, seed: int) -> Float[Tensor, "rows p"]:
    """Random orthonormal rows that are orthogonal to an orthonormal basis."""
    p, place = basis.shape[1], {"dtype": basis.dtype, "device": basis.device}
    random = random_rows(min(rows, p - len(basis)), p, seed=seed, **place)
    for _ in range(2):
        random = random - (random @ basis.T) @ basis
    return torch.linalg.qr(random.T).Q.T.contiguous()


@dataclass(frozen=True, eq=False)
class Deflated:
    r"""$(I - V^\top V)\, H\, (I - V^\top V)$: a curvature without some of its eigenpairs."""

    curvature: Curvature
    vectors: Float[Tensor, "rank p"]

    @property
    def size(self) -> int:
        return self.curvature.size

    @property
    def dtype(self) -> torch.dtype:
        return self.curvature.dtype

    @property
    def device(self) -> torch.device:
        return self.curvature.device

    def apply(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self._project(self.curvature.apply(self._project(vectors)))

    def dense(self) -> Float[Tensor, "p p"]:
        return self._project(self._project(self.curvature.dense()).T)

    def _project(self, rows: Tensor) -> Tensor:
        return rows - (rows @ self.vectors.T) @ self.vectors


def leading_eigenpairs(
    curvature: Curvature,
    rank: int,
    *,
    tol: float,
    seed: int,
    max_products: int,
    small_device: torch.device,
) -> Eigenpairs:
    r"""The `rank` < p eigenpairs of largest $|\mu|$, $\lVert Hv - \mu v \rVert \le tol |\mu_1|$.

    Block Krylov with blocks of `rank / 4`, from 32 pairs on of 8 to `rank / 7`, from a random
    start, two passes of orthogonalisation, Rayleigh-Ritz in float64. The basis is compressed when
    longer than four rows per pair. A converged basis is probed for eigenvalues that it missed
    (copies of a multiple eigenvalue beyond the block's width) and goes on if there are any. Stops
    at `max_products` as it stands.
    """
    width = max(min(_WIDTH, -(-rank // _FEWEST)), -(-rank // _MOST))
    place = {"dtype": curvature.dtype, "device": curvature.device}
    block = random_rows(width, curvature.size, seed=seed, **place)
    space, search = Subspace.start(curvature, block, small_device), _Search()
    while True:
        space.grow()
        enough = len(space.basis) >= rank
        exhausted = not enough and not len(space.block)
        spent = space.products >= max_products
        whole = len(space.basis) == curvature.size
        if spent or whole or (enough and search.ends(lambda: space.distance(rank, tol))):
            pairs = _leading(space, rank, seed, tol)
            if spent or whole or pairs.has_the_largest():
                return pairs
            exhausted = True
        if exhausted:
            space.refresh(seed + space.products)
        if len(space.basis) + len(space.block) > _LONGEST * rank + 2 * width:
            space.compress(rank + width)


@dataclass(eq=False)
class _Search:
    """When to look at the residuals: each time is an eigenproblem of the whole projected matrix.

    Not before they can be there if each block brings them nearer by the square of the factor of
    the one before, which is faster than they come.
    """

    before: float = math.inf
    grown: int = 0  # blocks since
    wanted: int = 1  # blocks until the next look

    def ends(self, distance: Callable[[], float]) -> bool:
        self.grown += 1
        if self.grown < self.wanted:
            return False
        now = distance()
        factor = (now / self.before) ** (1 / self.grown) if self.before > 0 else 1.0
        self.wanted = _earliest(now, factor)
        self.before, self.grown = now, 0
        return now <= 1


def _earliest(distance: float, factor: float) -> int:
    """Blocks until a distance of 1, at least."""
    blocks = 1
    while 0 < factor < 1 and blocks < _UNSEEN:
        factor *= factor
        distance *= factor
        if not distance > 1:
            break
        blocks += 1
    return blocks


def _leading(space: Subspace, rank: int, seed: int, tol: float) -> Eigenpairs:
    """The leading Ritz pairs with their residuals, and an estimate of the rest."""
    ritz = values, rotation, _ = space.ritz()
    values = values[:rank].to(space.basis)
    vectors = rotation[:, :rank].T.to(space.basis) @ space.basis
    residuals = space.residuals(vectors, ritz, tol, seed)
    left_out, tail = _left_out(Deflated(space.curvature, vectors), seed)
    inside = values.double().square().sum().item()
    captured = inside / (inside + tail) if inside else 1.0
    scale = values[0].abs().clamp(min=torch.finfo(values.dtype).tiny)
    return Eigenpairs(vectors, values, residuals / scale, left_out, captured, space.products)


def _left_out(rest: Deflated, seed: int) -> tuple[float, float]:
    """The largest eigenvalue in magnitude and the squared Frobenius norm, estimated by probes."""
    probes = orthogonal_rows(rest.vectors, _PROBES, seed + 1)
    space = Subspace.start(rest, probes, torch.device("cpu"))
    for _ in range(_PROBE_STEPS):
        if len(space.block):
            space.grow()
    first = space.projected[: len(probes)]
    outside = rest.size - len(rest.vectors)
    tail = first.square().sum().item() * outside / len(probes)
    return space.ritz()[0][0].abs().item(), tail
