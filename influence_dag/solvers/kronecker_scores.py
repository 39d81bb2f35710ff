"""Influences from Kronecker factors without leaving their eigenbasis."""

import math
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
from influence_dag.objective.objective import flushed_denormals, without_denormal_entries
from influence_dag.solvers.kronecker_blocks import DenseBlock, KroneckerBlock

if TYPE_CHECKING:
    from influence_dag.solvers.ekfac import KroneckerFactorization

_NUMBERS = 2**23  # numbers of factors, or of their products with rows, held at once
_WRITTEN = 2**25  # of factors for which rows are written out


def pays_to_rotate(test: Gradients, rows: int) -> bool:
    r"""Whether rotating `rows` gradients takes less than rotating the test rows' there and back.

    A pair is two products with a small matrix, $d_{in}^2 + d_{out}^2$ a position; a test row's
    factor four of two matrices, $2 \, d_{in} d_{out} (d_{in} + d_{out})$. Gradients that are kept
    written out are rotated as a factor is: they do not pay.
    """
    pairs = [block for block in test.blocks if isinstance(block, LinearGradients)]
    sizes = [(pair.activations[0].shape, pair.output_gradients[0].shape) for pair in pairs]
    rotated = sum(math.prod(a) * a[-1] + math.prod(g) * g[-1] for a, g in sizes)
    there_and_back = sum(2 * a[-1] * g[-1] * (a[-1] + g[-1]) for a, g in sizes)
    return len(pairs) == len(test.blocks) and rows * rotated <= len(test) * there_and_back


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

    @flushed_denormals()
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

    @flushed_denormals()
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
            yield without_denormal_entries(values.mul_(divisor.reciprocal().to(values.dtype)))

    def _check(self, damping: float, rows: Gradients) -> None:
        self.factorization.check(damping, next(iter(rows.tensors().values())).dtype)


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
