r"""Kronecker-factored curvature: K-FAC and its eigenvalue-corrected form, EK-FAC."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.finite import check_finite
from influence_dag.curvature.fisher_batches import (
    CondensedBatch,
    FisherBatch,
    Formed,
    Pair,
    by_positions,
    columns_of,
    gram,
)
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.gradients.layouts import joined
from influence_dag.gradients.uncaptured import NotCaptured

_FORMED = 2**21  # numbers of per-sample matrices held at once: what a processor's cache takes
_KEPT = 2**25  # numbers captured that are kept for the second pass instead of computed again


@dataclass(frozen=True, eq=False)
class KroneckerSums:
    r"""Sums over rows, not means, in float64: those of other rows can be added or taken away.

    For each captured layer $\sum_i \sum_t \tilde a_{it} \tilde a_{it}^\top$ (`activations`) and
    $\sum_i \sum_t \sum_c g_{itc} g_{itc}^\top$ (`gradients`), t running over `positions` (1
    for a Linear layer on vectors, 0 for one that no row calls); for each dense group the Fisher's
    block (`dense`), all in the order of `layout`. `rows` counts the i; rows with weights add those
    times their terms, and count as much.
    """

    layout: KroneckerLayout
    rows: float
    positions: tuple[int, ...]
    activations: tuple[Float[Tensor, "_ _"], ...]
    gradients: tuple[Float[Tensor, "_ _"], ...]
    dense: tuple[Float[Tensor, "_ _"], ...]

    def __add__(self, other: "KroneckerSums") -> "KroneckerSums":
        return self._combined(other, 1)

    def __sub__(self, other: "KroneckerSums") -> "KroneckerSums":
        return self._combined(other, -1)

    def _combined(self, other: "KroneckerSums", sign: int) -> "KroneckerSums":
        if self.layout != other.layout or _other_positions(self, other):
            raise ValueError("sums of different networks or input shapes cannot be combined")

        def each(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(a + sign * b for a, b in zip(mine, theirs, strict=True))

        return KroneckerSums(
            self.layout,
            self.rows + sign * other.rows,
            tuple(map(max, self.positions, other.positions)),
            each(self.activations, other.activations),
            each(self.gradients, other.gradients),
            each(self.dense, other.dense),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, those of a block under its name."""
        rows = torch.tensor(self.rows, dtype=torch.float64)
        named = {"rows": rows, **self.layout.tensors()}
        for i, layer in enumerate(self.layout.layers):
            named[joined(layer.name, "positions")] = torch.tensor(self.positions[i])
            named[joined(layer.name, "activation_sum")] = self.activations[i]
            named[joined(layer.name, "gradient_sum")] = self.gradients[i]
        for group, total in zip(self.layout.dense, self.dense, strict=True):
            named[joined(group.name, "dense_sum")] = total
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "KroneckerSums":
        """The inverse of `tensors`, among which others may be."""
        layout = KroneckerLayout.from_tensors(tensors)
        layers = [layer.name for layer in layout.layers]
        return cls(
            layout,
            float(tensors["rows"]),
            tuple(int(tensors[joined(name, "positions")]) for name in layers),
            tuple(tensors[joined(name, "activation_sum")] for name in layers),
            tuple(tensors[joined(name, "gradient_sum")] for name in layers),
            tuple(tensors[joined(group.name, "dense_sum")] for group in layout.dense),
        )


@dataclass(frozen=True, eq=False)
class KroneckerEigenbasis:
    r"""Eigenvectors (columns) and eigenvalues of $A = Q_A \Lambda_A Q_A^\top$ and of $G$."""

    activation_vectors: Float[Tensor, "d_in d_in"]
    activation_values: Float[Tensor, " d_in"]
    gradient_vectors: Float[Tensor, "d_out d_out"]
    gradient_values: Float[Tensor, " d_out"]

    def product_eigenvalues(self) -> Float[Tensor, "d_out d_in"]:
        r"""K-FAC: $\Lambda_G \Lambda_A^\top$, those of $G \otimes A$."""
        return self.gradient_values.outer(self.activation_values).clamp(min=0)


def _other_positions(first: KroneckerSums, second: KroneckerSums) -> set[str]:
    """Layers that see another number of positions in one than in the other; 0 is no call."""
    both = zip(first.layout.layers, first.positions, second.positions, strict=True)
    return {layer.name for layer, mine, theirs in both if 0 != mine != theirs != 0}


def kronecker_sums(pairs: Iterable[FisherBatch], layout: KroneckerLayout) -> KroneckerSums:
    """Sums of outer products over all batches."""
    total: KroneckerSums | None = None
    for batch in pairs:
        part = _batch_sums(batch, layout)
        if total is not None and (strange := _other_positions(total, part)):
            raise NotCaptured(strange)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no rows: a curvature is a mean over at least one")
    for name, tensor in total.tensors().items():
        check_finite(f"the Fisher: {name}", tensor)
    return total


def _batch_sums(batch: FisherBatch, layout: KroneckerLayout) -> KroneckerSums:
    return KroneckerSums(
        layout,
        batch.rows,
        tuple(a.shape[1] if a.ndim == 3 else 1 for a, _ in batch.pairs),
        tuple(gram(batch.root_weighted(a)) for a, _ in batch.pairs),
        tuple(gram(g) for _, g in batch.pairs),
        tuple(gram(values) for values in batch.dense),
    )


def eigenbases(sums: KroneckerSums) -> list[KroneckerEigenbasis]:
    r"""One for each layer, in float64, of $A = \frac1n \sum$ and $G = \frac{1}{nT} \sum$.

    T is the number of positions (Grosse & Martens 2016, whose assumption is that the gradients
    at different positions are independent).
    """
    found = []
    for A, G, positions in zip(sums.activations, sums.gradients, sums.positions, strict=True):
        a_values, a_vectors = torch.linalg.eigh(A / sums.rows)
        g_values, g_vectors = torch.linalg.eigh(G / (sums.rows * max(1, positions)))
        found.append(KroneckerEigenbasis(a_vectors, a_values, g_vectors, g_values))
    return found


def corrected_eigenvalues(
    pairs: Iterable[FisherBatch | CondensedBatch], bases: list[KroneckerEigenbasis]
) -> list[Float[Tensor, "_ _"]]:
    r"""EK-FAC: the Fisher's diagonal in each layer's Kronecker eigenbasis, float64.

    $$ \Lambda = \frac{1}{n} \sum_i \sum_c
       \Big( \sum_t (Q_G^\top g_{itc}) (Q_A^\top \tilde a_{it})^\top \Big)^{\circ 2} $$

    The best diagonal in that basis in the Frobenius norm (George et al. 2018).
    """
    rows, totals = 0.0, [torch.zeros_like(basis.product_eigenvalues()) for basis in bases]
    for batch in pairs:
        rows += batch.rows
        for total, basis, pair in zip(totals, bases, batch.pairs, strict=True):
            total += _squared_products(pair, basis)
    found = [total / rows for total in totals]
    for values in found:
        check_finite("the Fisher's eigenvalues", values)
    return found


def _squared_products(
    pair: Pair | Formed, basis: KroneckerEigenbasis
) -> Float[Tensor, "d_out d_in"]:
    r"""$\sum_{b c} (\sum_t (Q_G^\top g) (Q_A^\top a)^\top)^{\circ 2}$."""
    like = pair.matrices if isinstance(pair, Formed) else pair[0]
    Q_A, Q_G = basis.activation_vectors.to(like), basis.gradient_vectors.to(like)
    if isinstance(pair, Formed):
        return _of_formed(pair, Q_A, Q_G)
    a, g = pair
    if a.ndim == 2:
        return (g @ Q_G).square().sum(0).T @ (a @ Q_A).square()
    if by_positions(a, g):
        return _by_pairs_of_positions(a @ Q_A, g @ Q_G)
    return _by_forming(a, g, Q_A, Q_G)


def _of_formed(
    formed: Formed, Q_A: Float[Tensor, "d_in d_in"], Q_G: Float[Tensor, "d_out d_out"]
) -> Float[Tensor, "d_out d_in"]:
    total = Q_A.new_zeros(len(Q_G), len(Q_A))
    each = formed.matrices.flatten(0, 1)
    for part in each.split(max(1, _FORMED // total.numel())):
        total += (Q_G.T @ (part @ Q_A)).square().sum(0)
    return total


def _by_pairs_of_positions(
    a: Float[Tensor, "b t d_in"], g: Float[Tensor, "c b t d_out"]
) -> Float[Tensor, "d_out d_in"]:
    r"""$\sum_{t t'} (\sum_c g_t \circ g_{t'}) (a_t \circ a_{t'})^\top$: one product, few t."""
    first, second = torch.triu_indices(a.shape[1], a.shape[1], device=a.device)
    weight = torch.where(first == second, 1, 2).to(a.dtype)[:, None]
    squares_a = a[:, first] * a[:, second] * weight
    squares_g = sum((part[:, first] * part[:, second] for part in g), g.new_zeros(()))
    return squares_g.flatten(0, 1).T @ squares_a.flatten(0, 1)


def _by_forming(
    a: Float[Tensor, "b t d_in"],
    g: Float[Tensor, "c b t d_out"],
    Q_A: Float[Tensor, "d_in d_in"],
    Q_G: Float[Tensor, "d_out d_out"],
) -> Float[Tensor, "d_out d_in"]:
    c, _, t, d_out = g.shape
    columns = columns_of(g)
    # Rotate what has fewer rows: a sample's inputs, or its matrices for all root vectors.
    rotated_first = t <= c * d_out
    size = max(1, _FORMED // (columns.shape[1] * a.shape[2]))
    total = a.new_zeros(c * d_out, a.shape[2])
    for part_a, part_g in zip(a.split(size), columns.split(size), strict=True):
        rotated = (Q_G.T @ part_g.unflatten(1, (c, d_out))).flatten(1, 2)
        matrices = rotated @ (part_a @ Q_A if rotated_first else part_a)
        total += (matrices if rotated_first else matrices @ Q_A).square().sum(0)
    return total.view(c, d_out, -1).sum(0)


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """What a Fisher becomes: sums, the eigenbases of the layers, raw eigenvalues in them."""

    sums: KroneckerSums
    bases: list[KroneckerEigenbasis]
    eigenvalues: list[Float[Tensor, "_ _"]]


def kronecker_factors(
    pairs: FisherPairs, *, corrected: bool = True, sums: KroneckerSums | None = None
) -> KroneckerFactors:
    r"""EK-FAC of a Fisher, or K-FAC with `corrected=False`.

    `sums` already at hand (those of the same rows, brought up to date by differences) spare the
    first pass over the data. What the first pass captured is kept for the second, of as many rows
    as fit in 512 MiB.
    """
    kept = _Kept(pairs)
    if sums is None:
        sums = kronecker_sums(kept.first_pass() if corrected else pairs, pairs.layout)
    bases = eigenbases(sums)
    if corrected:
        return KroneckerFactors(sums, bases, corrected_eigenvalues(kept.second_pass(), bases))
    return KroneckerFactors(sums, bases, [basis.product_eigenvalues() for basis in bases])


@dataclass(eq=False)
class _Kept:
    """What a first pass captured of the first rows, for a second."""

    pairs: FisherPairs
    _batches: list[CondensedBatch] = field(default_factory=list)
    _rows: int = 0
    _left: int = field(default_factory=lambda: _KEPT)

    def first_pass(self) -> Iterator[FisherBatch]:
        for batch in self.pairs:
            self._keep(batch)
            yield batch

    def _keep(self, batch: FisherBatch) -> None:
        """Where there is room; after one for which there is none, no more."""
        if self._left > 0:
            condensed = CondensedBatch.of(batch)
            self._left -= condensed.numbers
            if self._left > 0:
                self._batches.append(condensed)
                self._rows += self.pairs.rows_at_once
            elif self.pairs.fisher == "sampled":  # labels are drawn from the first row on
                self._batches.clear()
                self._rows = 0

    def second_pass(self) -> Iterator[FisherBatch | CondensedBatch]:
        yield from self._batches
        yield from self.pairs.beginning_with(self._rows)
