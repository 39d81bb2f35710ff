"""Pairs of layer inputs and output gradients under a Fisher, batch by batch."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence_dag.capture import NotCaptured, Pair, layer_pair, recorded_layers
from influence_dag.curvature.kronecker_fisher import FisherName, output_roots
from influence_dag.errors import ModelError
from influence_dag.gradient_blocks import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradient_checks import check_batch
from influence_dag.gradients import gradient_layout, per_sample_gradients
from influence_dag.objective import Objective, Rows, without_denormals
from influence_dag.outputs import Leaves, OutputSpace, flat
from influence_dag.structures import tensors_of

_LARGEST_DENSE = 2**13  # parameters of one dense block: 512 MiB in float64, a minute of eigh
_NUMBERS = 2**25  # numbers captured at once

Place = tuple[int, int]


@dataclass(frozen=True)
class KroneckerLayer:
    """A Linear or Conv layer kept as a Kronecker product; places in θ as (start, stop)."""

    name: str
    weight: Place
    bias: Place | None

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)


@dataclass(frozen=True)
class DenseGroup:
    """Parameters of one module that are not captured: one dense block of the Fisher."""

    name: str
    places: tuple[Place, ...]

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.places)


@dataclass(frozen=True)
class KroneckerLayout:
    """Which parameters are in which block; together they cover θ."""

    layers: tuple[KroneckerLayer, ...]
    dense: tuple[DenseGroup, ...]

    @classmethod
    def of(
        cls, objective: Objective, sample: Rows, *, without: Iterable[str] = ()
    ) -> "KroneckerLayout":
        """Every layer that `gradient_layout` finds capturable and whose weight is trainable.

        Layers named in `without` become dense blocks. Raises `ModelError` for a dense block that
        is too large, naming it.
        """
        blocks = gradient_layout(objective, sample, without=without).blocks
        found = {b.name if isinstance(b, LinearLayout) else b.layer for b in blocks}
        layers = []
        for name in objective.parameter_names:
            owner, _, role = name.rpartition(".")
            if role == "weight" and owner in found:
                bias = objective.slices.get(joined(owner, "bias"))
                layers.append(
                    KroneckerLayer(owner, _place(objective.slices[name]), bias and _place(bias))
                )
        dense = _dense_groups(objective, {place for layer in layers for place in layer.places})
        return cls(tuple(layers), dense)

    def within(self, index: Int[Tensor, " q"]) -> "KroneckerLayout":
        """The blocks of some parameters only; a bias without its weight is dense.

        Raises `ValueError` where `index` has part of a parameter.
        """
        inside = {
            place
            for block in (*self.layers, *self.dense)
            for place in block.places
            if _position(place, index) is not None
        }
        layers, dense = [], []
        for layer in self.layers:
            bias = layer.bias if layer.bias in inside else None
            if layer.weight in inside:
                layers.append(KroneckerLayer(layer.name, layer.weight, bias))
            elif bias:
                dense.append(DenseGroup(layer.name, (bias,)))
        for group in self.dense:
            if places := tuple(place for place in group.places if place in inside):
                dense.append(DenseGroup(group.name, places))
        return KroneckerLayout(tuple(layers), tuple(dense))

    def relocated(self, index: Int[Tensor, " q"]) -> "KroneckerLayout":
        """The same blocks with their places in θ[index]; `index` has every one of them."""

        def moved(place: Place) -> Place:
            start = _position(place, index)
            assert start is not None
            return start, start + place[1] - place[0]

        return KroneckerLayout(
            tuple(
                KroneckerLayer(layer.name, moved(layer.weight), layer.bias and moved(layer.bias))
                for layer in self.layers
            ),
            tuple(DenseGroup(group.name, tuple(map(moved, group.places))) for group in self.dense),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The places as integers, named after the blocks; -1 where there is no bias."""
        layers = {
            joined(layer.name, "places"): torch.tensor([layer.weight, layer.bias or (-1, -1)])
            for layer in self.layers
        }
        dense = {joined(g.name, "dense_places"): torch.tensor(g.places) for g in self.dense}
        return layers | dense

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "KroneckerLayout":
        """The inverse of `tensors`, among which others may be."""
        layers: list[KroneckerLayer] = []
        dense: list[DenseGroup] = []
        for name, tensor in tensors.items():
            owner, _, kind = name.rpartition(".")
            if kind == "places":
                weight, bias = _places_of(tensor)
                layers.append(KroneckerLayer(owner, weight, bias if bias[0] >= 0 else None))
            elif kind == "dense_places":
                dense.append(DenseGroup(owner, _places_of(tensor)))
        return cls(
            tuple(sorted(layers, key=lambda layer: layer.weight)),
            tuple(sorted(dense, key=lambda group: group.places)),
        )


def joined(*names: str) -> str:
    """A dotted name; the module itself has an empty one, which leaves no dot."""
    return ".".join(name for name in names if name)


def _place(where: slice) -> Place:
    return where.start, where.stop


def _position(place: Place, index: Int[Tensor, " q"]) -> int | None:
    """Where a parameter starts in `index`, None if nothing of it is there."""
    found = ((index >= place[0]) & (index < place[1])).nonzero()[:, 0]
    if not len(found):
        return None
    start = int(found[0])
    if index[start : start + place[1] - place[0]].tolist() != list(range(*place)):
        raise ValueError(
            f"a block has {len(found)} of the {place[1] - place[0]} numbers of the parameter at "
            f"{place[0]}:{place[1]} of θ; Kronecker factors need whole parameters, in order"
        )
    return start


def _places_of(tensor: Tensor) -> tuple[Place, ...]:
    return tuple((start, stop) for start, stop in tensor.tolist())


def _dense_groups(objective: Objective, covered: set[Place]) -> tuple[DenseGroup, ...]:
    groups: dict[str, tuple[Place, ...]] = {}
    for name, where in objective.slices.items():
        if _place(where) not in covered:
            owner = name.rpartition(".")[0]
            groups[owner] = (*groups.get(owner, ()), _place(where))
    dense = tuple(DenseGroup(name, places) for name, places in groups.items())
    for group in dense:
        if group.size > _LARGEST_DENSE:
            raise ModelError(
                f"the {group.size} parameters of {group.name or 'the model'!r} do not belong to a "
                "Linear or Conv layer used once and need a dense Fisher block, which is limited "
                f"to {_LARGEST_DENSE}; freeze them (requires_grad_(False)) or use cg or nystroem"
            )
    return dense


@dataclass(frozen=True, eq=False)
class FisherBatch:
    r"""What one batch of b rows adds to each block, for c root vectors a row.

    `pairs`, a layer each: inputs $\tilde a$ `(b, [t,] d_in)`, a 1 appended for the bias, and
    gradients $g_c$ `(c, b, [t,] d_out)`. `dense`, a group each: gradients `(c b, size)`. Both
    gradients are times the roots of the rows' weights, where there are some; `rows` is the sum of
    the weights.
    """

    rows: float
    pairs: list[tuple[Tensor, Tensor]]
    dense: list[Tensor]
    weights: Float[Tensor, " b"] | None = None

    def root_weighted(self, a: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Inputs times the roots of the rows' weights."""
        if self.weights is None:
            return a
        return a * self.weights.to(a.dtype).sqrt().reshape(-1, *[1] * (a.ndim - 1))


@dataclass(frozen=True, eq=False)
class FisherPairs:
    """The batches of a Fisher at `objective.params`; a second pass gives the same ones."""

    objective: Objective
    rows: Rows
    layout: KroneckerLayout
    fisher: FisherName = "exact"
    seed: int = 0
    batch_size: int = 512

    def __iter__(self) -> Iterator[FisherBatch]:
        generator = torch.Generator().manual_seed(self.seed)
        for batch in self.rows.batches(self.rows_at_once):
            yield self._batch(batch, generator)

    @cached_property
    def numbers_per_row(self) -> int:
        """How many numbers are captured a row."""
        probe = self._batch(self.rows[:1], torch.Generator())
        return sum(t.numel() for pair in probe.pairs for t in pair) + sum(
            values.numel() for values in probe.dense
        )

    @property
    def rows_at_once(self) -> int:
        return max(1, min(self.batch_size, _NUMBERS // self.numbers_per_row))

    @without_denormals
    def _batch(self, rows: Rows, generator: torch.Generator) -> FisherBatch:
        names = {layer.name for layer in self.layout.layers}
        calls: list[tuple[str, Tensor, Tensor]] = []
        theta = self.objective.params.clone().requires_grad_()
        space = OutputSpace.of(self.objective, rows).used()
        with torch.enable_grad(), recorded_layers(self.objective.module, names, calls):
            leaves = space.leaves(theta)
            outputs = flat(leaves)
        roots = self._roots(space, leaves, generator)
        if rows.weights is not None:
            roots = roots * rows.weights.to(roots).sqrt()[:, None]
        pairs = self._pairs(calls, theta, outputs, roots) if names else []
        return FisherBatch(rows.weight_sum, pairs, self._dense(rows, roots), rows.weights)

    def _roots(
        self, space: OutputSpace, leaves: Leaves, generator: torch.Generator
    ) -> Float[Tensor, "c n m"]:
        """Root vectors in the flat outputs; a loss of one tensor is asked in its own shape."""
        one = isinstance(space.template, Tensor)
        loss, outputs = (
            (self.objective.loss, leaves[0]) if one else (space.loss_of_flat, flat(leaves))
        )
        roots = output_roots(
            loss, outputs.detach(), space.rows.y, fisher=self.fisher, generator=generator
        )
        return roots.reshape(*roots.shape[:2], -1)

    def _pairs(
        self,
        calls: list[tuple[str, Tensor, Tensor]],
        theta: Tensor,
        outputs: Float[Tensor, "n m"],
        roots: Float[Tensor, "c n m"],
    ) -> list[tuple[Tensor, Tensor]]:
        """Each layer's pair for all root vectors, held against a backward pass to θ."""
        self._check_calls(calls)
        gradients = [
            torch.autograd.grad(
                outputs,
                [out for _, _, out in calls],
                root,
                retain_graph=True,
                materialize_grads=True,
            )
            for root in roots
        ]
        pairs = {}
        for (name, x, _), parts in zip(calls, zip(*gradients, strict=True), strict=True):
            layer = self.objective.module.get_submodule(name)
            a, g = layer_pair(layer, x.detach(), torch.cat(parts))
            if a.ndim < 2 or len(a) != len(outputs) or len(g) != len(outputs) * len(roots):
                raise NotCaptured({name})
            pairs[name] = a, g.unflatten(0, (len(roots), -1))
        self._check_pairs(pairs, theta, outputs, roots)
        biased = {layer.name for layer in self.layout.layers if layer.bias}
        return [
            (_with_one(a) if name in biased else a, g)
            for name, (a, g) in ((layer.name, pairs[layer.name]) for layer in self.layout.layers)
        ]

    def _check_calls(self, calls: list[tuple[str, Tensor, Tensor]]) -> None:
        seen = Counter(name for name, _, output in calls if output.requires_grad)
        strange = {layer.name for layer in self.layout.layers if seen[layer.name] != 1}
        if strange:
            raise NotCaptured(strange)

    def _check_pairs(
        self, pairs: dict[str, Pair], theta: Tensor, outputs: Tensor, roots: Tensor
    ) -> None:
        r"""Compare $\sum_{ic} u_i r_c g_{ic}$ with one backward pass of $u_i r_c v_{ic}$."""
        generator = torch.Generator().manual_seed(len(outputs))
        r = torch.randn(len(roots), generator=generator, dtype=torch.float64).to(roots)
        mixed = {name: (a, torch.einsum("c,c...->...", r, g)) for name, (a, g) in pairs.items()}
        blocks = [
            LinearLayout(layer.name, layer.weight, layer.bias, 0, 0) for layer in self.layout.layers
        ]
        with torch.enable_grad():
            values = (outputs * torch.einsum("c,cnm->nm", r, roots)).sum(1)
        check_batch(theta, values, blocks, mixed, {}, seed=len(outputs))

    def _dense(self, rows: Rows, roots: Float[Tensor, "c n m"]) -> list[Tensor]:
        """Gradients of v · f, sample by sample, for what is not captured."""
        groups = self.layout.dense
        if not groups:
            return []
        linear = copy.copy(self.objective)
        linear.loss = _Inner(OutputSpace.of(self.objective, rows[:1]).used().places)
        blocks = tuple(
            DenseLayout(str(start), start, stop) for group in groups for start, stop in group.places
        )
        layout = GradientLayout(blocks, self.objective.size)
        parts = [
            per_sample_gradients(linear, Rows(rows.x, root), layout=layout).tensors()
            for root in roots
        ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return [
            torch.cat([whole[f"{start}.dense"] for start, _ in group.places], dim=1)
            for group in groups
        ]


@dataclass(frozen=True)
class _Inner:
    """The product of each row's outputs, at some places of a structure, with a vector."""

    places: tuple[int, ...]

    def __call__(self, outputs: Any, vectors: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        tensors = tensors_of(outputs)
        return (flat(tuple(tensors[place] for place in self.places)) * vectors).sum(1)


def _with_one(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
