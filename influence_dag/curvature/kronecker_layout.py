"""Which parameters a Kronecker-factored curvature has in which block."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.gradients import found_layouts
from influence_dag.gradients.layers import is_capturable, is_transposed, layer_of
from influence_dag.gradients.layouts import LinearLayout, joined
from influence_dag.objective.objective import Objective, Rows

_LARGEST_DENSE = 2**13  # parameters of one dense block: 512 MiB in float64, a minute of eigh

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

        So is one that no row of the sample calls: which rows come first decides nothing.
        Layers named in `without` become dense blocks. Raises `ModelError` for a dense block that
        is too large, naming it.
        """
        blocks = found_layouts.gradient_layout(objective, sample, without=without).blocks
        module = objective.module
        layers_of_blocks = (b.name if isinstance(b, LinearLayout) else b.layer for b in blocks)
        found = {name for name in layers_of_blocks if name is not None}
        local = {name for name in found if name and not is_capturable(layer_of(module, name))}
        found -= local
        found |= found_layouts.uncalled_layers(objective, sample, besides=found | set(without))
        layers = []
        for name in found:
            weight, bias = found_layouts.layer_places(objective, name)
            if weight:
                transposed = is_transposed(layer_of(module, name))
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
        return KroneckerLayout(tuple(layers), _in_order(dense))

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
            _in_order(dense),
        )


def place_of(where: slice) -> Place:
    """Start and stop in θ."""
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


def _in_order(dense: list[DenseGroup]) -> tuple[DenseGroup, ...]:
    """As their parameters are in θ, which gradients of single rows are taken by."""
    return tuple(sorted(dense, key=lambda group: group.places))


def _dense_groups(
    objective: Objective, covered: set[Place], local: set[str]
) -> tuple[DenseGroup, ...]:
    groups: dict[str, tuple[Place, ...]] = {}
    for name, where in objective.slices.items():
        if place_of(where) not in covered:
            owner = name.rpartition(".")[0]
            groups[owner] = (*groups.get(owner, ()), place_of(where))
    dense = tuple(DenseGroup(name, places, name in local) for name, places in groups.items())
    for group in dense:
        if group.size > _LARGEST_DENSE:
            raise ModelError(
                f"the {group.size} parameters of {group.name or 'the model'!r} do not belong to a "
                "Linear or Conv layer used once and need a dense Fisher block, which is limited "
                f"to {_LARGEST_DENSE}; freeze them (requires_grad_(False)) or use cg or nystroem"
            )
    return dense
