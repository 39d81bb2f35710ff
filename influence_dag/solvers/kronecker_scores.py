"""Influences from Kronecker factors without leaving their eigenbasis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.kronecker_layout import Place
from influence_dag.gradients.blocks import (
    DenseLayout,
    GradientBlock,
    GradientLayout,
    LinearLayout,
)
from influence_dag.gradients.per_sample import Gradients, LinearGradients
from influence_dag.solvers.kronecker_blocks import DenseBlock, KroneckerBlock

if TYPE_CHECKING:
    from influence_dag.solvers.ekfac import KroneckerFactorization

_NUMBERS = 2**23  # numbers of factors, or of their products with rows, held at once
_WRITTEN = 2**25  # of factors for which rows are written out


@dataclass(frozen=True, eq=False)
class RotatedGradients:
    r"""Per-sample gradients $Q^\top \nabla L$ in the eigenbasis of a factorisation.

    Pairs stay pairs, $(Q_A^\top \tilde a, Q_G^\top g)$: two vectors are rotated where solving
    rotates a matrix there and back. Rotate the training rows once, then score any test rows.
    """

    factorization: "KroneckerFactorization"
    gradients: Gradients

    @classmethod
    def of(
        cls, factorization: "KroneckerFactorization", gradients: Gradients
    ) -> "RotatedGradients":
        """Rotate gradients of the network whose factors these are."""
        tensors: dict[str, Tensor] = {}
        layouts: list[LinearLayout | DenseLayout] = []
        start = 0
        for block in factorization.blocks:
            stop = start + block.eigenvalues.numel()
            layout, rotated = _rotated(block, gradients, start, stop)
            tensors |= dict(zip(layout.row_shapes, rotated, strict=True))
            layouts.append(layout)
            start = stop
        whole = GradientLayout(tuple(layouts), start)
        return cls(factorization, Gradients.assembled(whole, tensors))

    def influences(self, test: Gradients, *, damping: float) -> Float[Tensor, "k n"]:
        r"""$\nabla L(z_{test})^\top (F + \lambda I)^{-1} \nabla L(z_i)$ of all pairs.

        Signs and scale as for `influence_dag.influences`, of which this is the value for factors
        solved with the factorisation.
        """
        return torch.cat([self.gradients.inner(S) for S in self._factors(test, damping)])

    def own_influences(self, *, damping: float) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        r"""Of each row $\nabla L_i^\top (F + \lambda I)^{-1} \nabla L_i$ and the factor's length.

        With coordinates c in the eigenbasis, $\sum c^2 / (\Lambda + \lambda)$ and
        $(\sum c^2 / (\Lambda + \lambda)^2)^{1/2}$: of a pair, two products with small matrices.
        In float64, since squares of small gradients are beyond the range of float32.
        """
        self._check(damping, self.gradients)
        sums = []
        for kept, block in self._blocks:
            once = (block.eigenvalues.double() + damping).reciprocal()
            numbers = sum(once.shape) if _is_single(kept) else once.numel()
            parts = [_square_sums(part, once) for part in _cut(kept, numbers)]
            sums.append(torch.cat(parts, dim=1))
        own, squares = torch.stack(sums).sum(0)
        return own, squares.sqrt()

    def solved(self, *, damping: float) -> Float[Tensor, "n p"]:
        r"""Factors $(F + \lambda I)^{-1} \nabla L$, dense, as `solve` has them in half the time."""
        self._check(damping, self.gradients)
        rows = self.gradients
        out = next(iter(rows.tensors().values())).new_zeros(len(rows), rows.size)
        for kept, block in self._blocks:
            divisor = (block.eigenvalues + damping).reciprocal()
            at = 0
            for part in _cut(kept, divisor.numel()):
                ((_, values),) = part.parts()
                rotated = values.view(-1, *divisor.shape) * divisor.to(values.dtype)
                block.put_back(rotated, out[at : at + len(part)])
                at += len(part)
        return out

    @property
    def _blocks(self) -> Iterator[tuple[GradientBlock, KroneckerBlock | DenseBlock]]:
        return zip(self.gradients.blocks, self.factorization.blocks, strict=True)

    def low_rank_influences(
        self, test: Gradients, *, damping: float, rank: int, seed: int = 0
    ) -> tuple[Float[Tensor, "k n"], Float[Tensor, " k"]]:
        r"""Influences with each layer's factor S cut to `rank`, and the error of the factors.

        $\tilde g^\top S \tilde a \approx \sum_r (q_r \cdot \tilde g)(b_r \cdot \tilde a)$ costs
        $r (d_{out} + d_{in})$ a pair instead of $d_{out} d_{in}$. The error of a test row is
        $\epsilon = \lVert S - \hat S \rVert / \lVert S \rVert$ over all layers: no score is off
        by more than $\epsilon \lVert S \rVert \lVert \nabla L(z_i) \rVert$. Randomised range
        finder with two power iterations (Halko, Martinsson & Tropp 2011), repeatable by `seed`.
        """
        scores, errors = [], []
        for S in self._factors(test, damping):
            part, lost = self._cut_scores(S, rank, seed)
            scores.append(part)
            errors.append((lost.clamp(min=0) / _squared(S).clamp(min=1e-300)).sqrt())
        return torch.cat(scores), torch.cat(errors)

    def _factors(self, test: Gradients, damping: float) -> Iterator[Float[Tensor, "k p"]]:
        """Rotated factors of a few test rows at a time."""
        self._check(damping, test)
        eigenvalues = [block.eigenvalues.flatten() for block in self.factorization.blocks]
        divisor = torch.cat(eigenvalues) + damping
        # A row of several positions is written out once for all factors that are at hand.
        pairs = (block for block in self.gradients.blocks if isinstance(block, LinearGradients))
        written = not all(_is_single(block) for block in pairs)
        rows = max(1, (_WRITTEN if written else _NUMBERS) // len(divisor))
        for start in range(0, len(test), rows):
            part = RotatedGradients.of(self.factorization, test[start : start + rows])
            values = part.gradients.dense()
            yield values.mul_(divisor.reciprocal().to(values.dtype))

    def _check(self, damping: float, rows: Gradients) -> None:
        self.factorization.check(damping, next(iter(rows.tensors().values())).dtype)

    def _cut_scores(self, S: Float[Tensor, "k p"], rank: int, seed: int) -> tuple[Tensor, Tensor]:
        scores = S.new_zeros(len(S), len(self.gradients))
        lost = torch.zeros(len(S), dtype=torch.float64, device=S.device)
        for block in self.gradients.blocks:
            if isinstance(block, LinearGradients) and rank < min(_widths(block)):
                V = S[:, block.weight].unflatten(1, _widths(block))
                Q, B = _range(V, rank, seed)
                lost += _squared(V) - _squared(B)
                _add_low_rank(block, Q, B, scores)
            else:
                block.add_inner(S, scores)
        return scores, lost


def _widths(block: LinearGradients) -> tuple[int, int]:
    return block.output_gradients.shape[-1], block.activations.shape[-1]


def _is_single(block: GradientBlock) -> bool:
    """Whether a row's gradient is one product of two vectors."""
    return isinstance(block, LinearGradients) and block.activations.ndim == 2


def _cut(block: GradientBlock, numbers: int) -> Iterator[GradientBlock]:
    """Runs of rows, each of so many numbers when it is written out, that fit in memory."""
    size = max(1, _NUMBERS // numbers)
    for start in range(0, len(block), size):
        yield block[start : start + size]


def _square_sums(block: GradientBlock, once: Float[Tensor, "*d"]) -> Float[Tensor, "two n"]:
    r"""$\sum c^2 w$ and $\sum c^2 w^2$ of each row's coordinates c, with the weights `once`."""
    weights = torch.stack([once, once.square()])
    if isinstance(block, LinearGradients) and _is_single(block):
        a, g = block.activations.double().square(), block.output_gradients.double().square()
        return ((a @ weights.mT) * g).sum(2)
    ((_, values),) = block.parts()
    return weights.flatten(1) @ values.double().square().T


def _rotated(
    block: KroneckerBlock | DenseBlock, gradients: Gradients, start: int, stop: int
) -> tuple[LinearLayout | DenseLayout, tuple[Tensor, ...]]:
    """One block's rotated gradients, with the places of its coordinates in the eigenbasis."""
    pairs = _pairs(block, gradients)
    if pairs is None:
        values = block.rotate([_part(gradients, place) for place in block.places])
        return DenseLayout(str(start), start, stop), (values.flatten(1),)
    a, g = pairs
    positions = a.shape[1] if a.ndim == 3 else 0
    widths = a.shape[-1], g.shape[-1]
    return LinearLayout(str(start), (start, stop), None, *widths, positions), (a, g)


def _pairs(block: KroneckerBlock | DenseBlock, gradients: Gradients) -> tuple[Tensor, ...] | None:
    if isinstance(block, KroneckerBlock):
        for candidate in gradients.blocks:
            if isinstance(candidate, LinearGradients) and candidate.name == block.layer.name:
                return block.rotate_pairs(candidate)
    return None


def _part(gradients: Gradients, place: Place) -> Float[Tensor, "n size"]:
    """The dense gradients of one parameter."""
    for block in gradients.blocks:
        of_pair = isinstance(block, LinearGradients)
        held = [block.weight, block.bias] if of_pair else [block.slice]
        if slice(*place) in held:
            return next(values for where, values in block.parts() if where == slice(*place))
    raise ValueError(
        f"the gradients have no parameter at {place[0]}:{place[1]} of θ: they are of another "
        "network than the factors"
    )


# Low rank -------------------------------------------------------------------------------------


def _range(
    S: Float[Tensor, "k d_out d_in"], rank: int, seed: int
) -> tuple[Float[Tensor, "k d_out r"], Float[Tensor, "k r d_in"]]:
    """Orthonormal Q and B = Qᵀ S with Q B ≈ S."""
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(S.shape[2], rank, generator=generator, dtype=torch.float64).to(S)
    Q = torch.linalg.qr(S @ omega).Q
    for _ in range(2):
        Q = torch.linalg.qr(S @ torch.linalg.qr(S.mT @ Q).Q).Q
    return Q, Q.mT @ S


def _squared(rows: Float[Tensor, "k ..."]) -> Float[Tensor, " k"]:
    """Squared norms; in float64, because small differences of them are wanted."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64).square()


def _add_low_rank(block: LinearGradients, Q: Tensor, B: Tensor, out: Float[Tensor, "k n"]) -> None:
    a, g = block.activations, block.output_gradients
    size = max(1, _NUMBERS // (a[..., 0].numel() * Q.shape[2]))
    for part, q, b in zip(out.split(size), Q.split(size), B.split(size), strict=True):
        k, _, rank = q.shape
        left = g @ q.transpose(0, 1).flatten(1)
        right = a @ b.flatten(0, 1).T
        products = (left * right).unflatten(-1, (k, rank)).sum(-1)
        part += (products if a.ndim == 2 else products.sum(1)).T
