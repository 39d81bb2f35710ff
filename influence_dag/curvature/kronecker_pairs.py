"""Pairs of layer inputs and output gradients under a Fisher, batch by batch."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from influence_dag.capture import NotCaptured, Pair, layer_pair, recorded_layers
from influence_dag.curvature.drawn_labels import Distribution, Draw
from influence_dag.curvature.kronecker_fisher import FisherName, output_roots
from influence_dag.errors import ModelError
from influence_dag.gradient_blocks import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradient_checks import check_batch
from influence_dag.gradients import (
    gradient_layout,
    layer_places,
    own_parameters,
    per_sample_gradients,
)
from influence_dag.layers import is_capturable, is_transposed, layer_of
from influence_dag.local_gradients import local_gradients
from influence_dag.objective import Objective, Rows, without_denormals
from influence_dag.outputs import Leaves, OutputSpace, flat
from influence_dag.structures import joined, tensors_of

_LARGEST_DENSE = 2**13  # parameters of one dense block: 512 MiB in float64, a minute of eigh
_NUMBERS = 2**25  # numbers captured at once

Place = tuple[int, int]


@dataclass(frozen=True)
class KroneckerLayer:
    """A Linear or Conv layer kept as a Kronecker product; places in θ as (start, stop).

    `transposed`: its weight is (inputs, outputs).
    """

    name: str
    weight: Place
    bias: Place | None
    transposed: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)


@dataclass(frozen=True)
class DenseGroup:
    """Parameters of one module that are no product: one dense block of the Fisher.

    `local`: their gradients come from a pass through that module alone.
    """

    name: str
    places: tuple[Place, ...]
    local: bool = field(default=False, compare=False)

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
        local = {name for name in found if name and not is_capturable(_layer(objective, name))}
        found -= local
        layers = []
        for name in (each for each in found if each is not None):
            weight, bias = layer_places(objective, name)
            if weight:
                transposed = is_transposed(_layer(objective, name))
                layers.append(KroneckerLayer(name, weight, bias, transposed))
        layers.sort(key=lambda layer: layer.weight)
        covered = {place for layer in layers for place in layer.places}
        dense = _dense_groups(objective, covered, local)
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
                layers.append(replace(layer, bias=bias))
            elif bias:
                dense.append(DenseGroup(layer.name, (bias,)))
        for group in self.dense:
            if places := tuple(place for place in group.places if place in inside):
                dense.append(replace(group, places=places))
        return KroneckerLayout(tuple(layers), tuple(dense))

    def relocated(self, index: Int[Tensor, " q"]) -> "KroneckerLayout":
        """The same blocks with their places in θ[index]; `index` has every one of them."""

        def moved(place: Place) -> Place:
            start = _position(place, index)
            assert start is not None
            return start, start + place[1] - place[0]

        return KroneckerLayout(
            tuple(
                replace(layer, weight=moved(layer.weight), bias=layer.bias and moved(layer.bias))
                for layer in self.layers
            ),
            tuple(replace(group, places=tuple(map(moved, group.places))) for group in self.dense),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The places as integers, named after the blocks; -1 where there is no bias.

        Those of a transposed weight are its end and its start.
        """
        layers = {
            joined(layer.name, "places"): torch.tensor(
                [layer.weight[:: -1 if layer.transposed else 1], layer.bias or (-1, -1)]
            )
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
                (first, last), bias = _places_of(tensor)
                weight, transposed = (min(first, last), max(first, last)), first > last
                bias = bias if bias[0] >= 0 else None
                layers.append(KroneckerLayer(owner, weight, bias, transposed))
            elif kind == "dense_places":
                dense.append(DenseGroup(owner, _places_of(tensor)))
        return cls(
            tuple(sorted(layers, key=lambda layer: layer.weight)),
            tuple(sorted(dense, key=lambda group: group.places)),
        )


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


def _layer(objective: Objective, name: str) -> nn.Module:
    return layer_of(objective.module, name)


def _dense_groups(
    objective: Objective, covered: set[Place], local: set[str]
) -> tuple[DenseGroup, ...]:
    groups: dict[str, tuple[Place, ...]] = {}
    for name, where in objective.slices.items():
        if _place(where) not in covered:
            owner = name.rpartition(".")[0]
            groups[owner] = (*groups.get(owner, ()), _place(where))
    dense = tuple(DenseGroup(name, places, name in local) for name, places in groups.items())
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
    distribution: Distribution | None = None

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
        local = {group.name for group in self.layout.dense if group.local}
        names = {layer.name for layer in self.layout.layers} | local
        theta = self.objective.params.clone().requires_grad_()
        space = OutputSpace.of(self.objective, rows).used()
        recording = recorded_layers(self.objective.module, names, len(rows))
        with torch.enable_grad(), recording as seen, seen.telling_failures():
            leaves = space.leaves(theta)
            outputs = flat(leaves)
        if seen.rebuilt:
            seen.check(outputs, space.values)
        roots = self._roots(space, leaves, generator)
        if rows.weights is not None:
            roots = roots * rows.weights.to(roots).sqrt()[:, None]
        pairs, caught = self._captured(seen.calls, theta, outputs, roots) if names else ([], {})
        dense = self._dense(rows, roots, caught)
        return FisherBatch(rows.weight_sum, pairs, dense, rows.weights)

    def _roots(
        self, space: OutputSpace, leaves: Leaves, generator: torch.Generator
    ) -> Float[Tensor, "c n m"]:
        """Root vectors in the flat outputs; a loss of one tensor is asked in its own shape."""
        loss, outputs, draw = space.loss_of_flat, flat(leaves), self.distribution
        if isinstance(space.template, Tensor):
            loss, outputs = self.objective.loss, leaves[0]
        elif len(leaves) == 1:
            loss, outputs = space.loss_of_leaf, leaves[0]
        if callable(draw) and not isinstance(space.template, Tensor):
            draw = _of_structure(draw, space)
        roots = output_roots(
            loss,
            outputs.detach(),
            space.rows.y,
            fisher=self.fisher,
            generator=generator,
            distribution=draw,
        )
        return roots.reshape(*roots.shape[:2], -1)

    def _captured(
        self,
        calls: list[tuple[str, Tensor, Tensor]],
        theta: Tensor,
        outputs: Float[Tensor, "n m"],
        roots: Float[Tensor, "c n m"],
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[Place, Tensor]]:
        """Each layer's pair for all root vectors, and the gradients (c, n, size) of local groups.

        Held against a backward pass to θ.
        """
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
        pairs: dict[str, Pair] = {}
        written: dict[Place, Tensor] = {}
        for (name, x, _), parts in zip(calls, zip(*gradients, strict=True), strict=True):
            layer = _layer(self.objective, name)
            if not is_capturable(layer):
                written |= self._local(name, x.detach(), torch.stack(parts), len(outputs))
                continue
            a, g = layer_pair(layer, x.detach(), torch.cat(parts))
            if a.ndim < 2 or len(a) != len(outputs) or len(g) != len(outputs) * len(roots):
                raise NotCaptured({name})
            pairs[name] = a, g.unflatten(0, (len(roots), -1))
        self._check_captured(pairs, written, theta, outputs, roots)
        biased = {layer.name for layer in self.layout.layers if layer.bias}
        ordered = [
            (_with_one(a) if name in biased else a, g)
            for name, (a, g) in ((layer.name, pairs[layer.name]) for layer in self.layout.layers)
        ]
        return ordered, written

    def _local(
        self, name: str, x: Tensor, g: Float[Tensor, "c n ..."], rows: int
    ) -> dict[Place, Tensor]:
        """Gradients of a layer that is no product, by their places in θ."""
        if x.shape[:1] != (rows,) or g.shape[1:2] != (rows,):
            raise NotCaptured({name})
        parameters = own_parameters(self.objective, name)
        found = local_gradients(name, _layer(self.objective, name), parameters, x, g)
        slices = self.objective.slices
        return {_place(slices[f"{name}.{role}"]): values for role, values in found.items()}

    def _check_calls(self, calls: list[tuple[str, Tensor, Tensor]]) -> None:
        seen = Counter(name for name, _, output in calls if output.requires_grad)
        local = [group.name for group in self.layout.dense if group.local]
        names = [*(layer.name for layer in self.layout.layers), *local]
        strange = {name for name in names if seen[name] != 1}
        if strange:
            raise NotCaptured(strange)

    def _check_captured(
        self,
        pairs: dict[str, Pair],
        written: dict[Place, Tensor],
        theta: Tensor,
        outputs: Tensor,
        roots: Tensor,
    ) -> None:
        r"""Compare $\sum_{ic} u_i r_c g_{ic}$ with one backward pass of $u_i r_c v_{ic}$."""
        generator = torch.Generator().manual_seed(len(outputs))
        r = torch.randn(len(roots), generator=generator, dtype=torch.float64).to(roots)
        mixed = {name: (a, torch.einsum("c,c...->...", r, g)) for name, (a, g) in pairs.items()}
        sums = {str(at[0]): torch.einsum("c,cns->ns", r, g) for at, g in written.items()}
        blocks: list[LinearLayout | DenseLayout] = [
            LinearLayout(layer.name, layer.weight, layer.bias, 0, 0, transposed=layer.transposed)
            for layer in self.layout.layers
        ]
        for group in self.layout.dense:
            places = [at for at in group.places if group.local]
            blocks += [DenseLayout(str(start), start, stop, group.name) for start, stop in places]
        with torch.enable_grad():
            values = (outputs * torch.einsum("c,cnm->nm", r, roots)).sum(1)
        check_batch(theta, values, blocks, mixed, sums, seed=len(outputs))

    def _dense(
        self, rows: Rows, roots: Float[Tensor, "c n m"], caught: dict[Place, Tensor]
    ) -> list[Tensor]:
        """Gradients of v · f, sample by sample, of each dense group."""
        wanted = [group for group in self.layout.dense if not group.local]
        found = caught | (self._row_by_row(rows, roots, wanted) if wanted else {})
        return [
            torch.cat([found[place].flatten(0, 1) for place in group.places], dim=1)
            for group in self.layout.dense
        ]

    def _row_by_row(
        self, rows: Rows, roots: Float[Tensor, "c n m"], groups: list[DenseGroup]
    ) -> dict[Place, Tensor]:
        """The same through the whole network, a pass a root vector, for what is not captured."""
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
        places = [place for group in groups for place in group.places]
        return {at: torch.stack([part[f"{at[0]}.dense"] for part in parts]) for at in places}


def _of_structure(draw: Draw, space: OutputSpace) -> Draw:
    """The draw as a function of the outputs that roots are taken in."""
    return lambda outputs, targets, generator: draw(
        space.structured(outputs.flatten(1)), targets, generator
    )


@dataclass(frozen=True)
class _Inner:
    """The product of each row's outputs, at some places of a structure, with a vector."""

    places: tuple[int, ...]

    def __call__(self, outputs: Any, vectors: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        tensors = tensors_of(outputs)
        return (flat(tuple(tensors[place] for place in self.places)) * vectors).sum(1)


def _with_one(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
