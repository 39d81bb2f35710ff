"""Per-sample gradients by one batched backward pass that captures each layer's pair."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap

from influence_dag.gradients.blocks import (
    DenseGradients,
    DenseLayout,
    GradientLayout,
    Gradients,
    LinearGradients,
    LinearLayout,
)
from influence_dag.gradients.capture import (
    Captured,
    NotCaptured,
    Pair,
    capture,
    recorded_layers,
    without_uncaptured,
)
from influence_dag.gradients.checks import check_batch
from influence_dag.gradients.layers import (
    InProjection,
    is_capturable,
    is_transposed,
    layer_of,
    layers_of,
    parameter_name,
)
from influence_dag.gradients.local import is_local, local_gradients
from influence_dag.objective.batching import Of
from influence_dag.objective.footprint import rows_in_cache
from influence_dag.objective.objective import Objective, Rows, without_denormals
from influence_dag.structures import map_tensors, tensors_of

__all__ = [
    "DenseGradients",
    "GradientLayout",
    "Gradients",
    "LinearGradients",
    "gradient_layout",
    "per_sample_gradients",
    "with_layout",
]

_SAMPLE = 3  # rows on which captured gradients are compared with autograd's
_DENSE_NUMBERS = 2**25  # dense gradients differentiated at once

_Result = TypeVar("_Result")


@without_denormals
def per_sample_gradients(
    objective: Objective,
    rows: Rows,
    *,
    layout: GradientLayout | None = None,
    of: Of = "loss",
    batch_size: int = 512,
) -> Gradients:
    r"""$w_i \nabla_\theta L(z_i)$ of every row at `objective.params`, or of the measurement.

    w are the rows' weights, 1 without; a measurement (which is the loss where there is none) is
    a test row's own and is not weighed.

    Costs less than two batched gradients: the backward pass stops at each layer's output, the
    weight products are never formed; norms and embeddings take a pass through their layer alone.
    Parameters that cannot be captured (recurrent and tied weights) go through `vmap(grad)`. On
    every batch the gradients are held against a backward pass of $\sum_i u_i L_i$ with fresh random
    u, tensor by tensor; layers for which that fails are differentiated row by row. With a `layout`
    that names such a layer, `NotCaptured` is raised (`with_layout` finds one that serves all rows).

    Raises `ModelError` where the gradient of a row alone is not the one that it has in a batch.
    """
    if layout is None:
        return with_layout(
            objective,
            rows,
            lambda found: per_sample_gradients(
                objective, rows, layout=found, of=of, batch_size=batch_size
            ),
        )
    size = rows_in_cache(objective, rows, min(batch_size, len(rows)), of=of)
    parts = [
        _batch(objective, batch, layout, of, seed)
        for seed, batch in enumerate(rows.batches(max(1, size)))
    ]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Gradients.assembled(layout, tensors)


def with_layout(
    objective: Objective, sample: Rows, compute: Callable[[GradientLayout], _Result]
) -> _Result:
    """What `compute` makes with the layout of fewest numbers that serves all rows it meets.

    Starts from what a few rows of `sample` show; a layer that a later batch shows to be another
    (`NotCaptured`) is left to differentiation row by row, and `compute` is called again.
    """
    return without_uncaptured(
        lambda names: compute(gradient_layout(objective, sample, without=names))
    )


def _batch(
    objective: Objective, rows: Rows, layout: GradientLayout, of: Of, seed: int
) -> dict[str, Tensor]:
    names = (b.name if isinstance(b, LinearLayout) else b.layer for b in layout.blocks)
    layers = {name for name in names if name is not None}
    theta = objective.params.clone().requires_grad_()
    values = _values(objective, of)
    captured = capture(objective.module, layers, lambda: values(theta, rows), len(rows))
    local = layers & _local_layers(objective)
    pairs = _single_pairs(captured, layout, len(rows), local)
    dense = [b for b in layout.blocks if isinstance(b, DenseLayout) and b.layer is None]
    written = _dense_gradients(objective, rows, dense, of) if dense else {}
    for name in local:
        written |= _of_layer(objective, name, *pairs.pop(name))
    check_batch(theta, captured.values, layout.blocks, pairs, written, seed=seed)
    tensors: dict[str, Tensor] = {}
    for block in layout.blocks:
        (first, *_) = names = list(block.row_shapes)
        if isinstance(block, LinearLayout):
            tensors |= dict(zip(names, pairs[block.name], strict=True))
        elif block.name in written:
            tensors[first] = written[block.name]
        else:
            assert block.layer is not None
            tensors[first] = _formed(objective, block, *pairs[block.layer])
    return tensors


def _single_pairs(
    captured: Captured, layout: GradientLayout, rows: int, local: set[str]
) -> dict[str, Pair]:
    """The one pair of each layer, in the shapes of the layout where it is kept as a product."""
    shapes = {
        block.name: tuple(block.row_shapes.values())
        for block in layout.blocks
        if isinstance(block, LinearLayout)
    }
    strange = {
        name
        for name, pairs in captured.pairs.items()
        if len(pairs) != 1
        or any(part.shape[:1] != (rows,) for part in pairs[0])
        or (name not in local and any(part.ndim < 2 for part in pairs[0]))
        or tuple(tuple(part.shape[1:]) for part in pairs[0]) != shapes.get(name, _shapes(pairs[0]))
    }
    if strange:
        raise NotCaptured(strange)
    return {name: pairs[0] for name, pairs in captured.pairs.items()}


def _local_layers(objective: Objective) -> set[str]:
    return {name for name, layer in objective.module.named_modules() if is_local(name, layer)}


def _of_layer(objective: Objective, name: str, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Gradients of the parameters of a layer that is no product, by their names in the module."""
    parameters = own_parameters(objective, name)
    found = local_gradients(name, objective.module.get_submodule(name), parameters, x, [g])
    return {f"{name}.{role}": values[0] for role, values in found.items()}


def own_parameters(objective: Objective, name: str) -> dict[str, Tensor]:
    """A layer's own trainable parameters, by their names in the layer."""
    layer = objective.module.get_submodule(name)
    values = objective.unflatten(objective.params)
    roles = (role for role, _ in layer.named_parameters(recurse=False))
    return {role: values[f"{name}.{role}"] for role in roles if f"{name}.{role}" in values}


def _shapes(pair: Pair) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(part.shape[1:]) for part in pair)


def _formed(objective: Objective, block: DenseLayout, a: Tensor, g: Tensor) -> Tensor:
    pair = LinearGradients("", a, g, None, None, block.transposed)
    is_bias = len(objective.parameter_shapes[objective.parameter_names.index(block.name)]) == 1
    return pair.bias_gradients() if is_bias else pair.weight_gradients()


def _values(objective: Objective, of: Of) -> Callable[[Tensor, Rows], Tensor]:
    if of == "measurement":
        return objective.measurements
    return lambda theta, rows: rows.weighted(objective.losses(theta, rows))


# The general way ------------------------------------------------------------------------------


def _dense_gradients(
    objective: Objective, rows: Rows, blocks: list[DenseLayout], of: Of
) -> dict[str, Tensor]:
    """Gradients of some parameters, each row a batch of its own, under vmap where that can be."""
    constant = objective.params
    cuts = [(block.start, block.stop) for block in blocks]

    def value(subset: tuple[Tensor, ...], row: Rows) -> Tensor:
        return _values(objective, of)(_with(constant, cuts, subset), row).reshape(())

    subset = tuple(constant[start:stop] for start, stop in cuts)
    size = max(1, _DENSE_NUMBERS // sum(stop - start for start, stop in cuts))
    parts = [_each_row(value, subset, batch) for batch in rows.batches(size)]
    return {
        block.name: torch.cat(values)
        for block, values in zip(blocks, zip(*parts, strict=True), strict=True)
    }


def _each_row(
    value: Callable[[tuple[Tensor, ...], Rows], Tensor], subset: tuple[Tensor, ...], rows: Rows
) -> tuple[Tensor, ...]:
    def of_one(subset: tuple[Tensor, ...], x: Any, y: Any, weights: Any) -> Tensor:
        return value(subset, Rows(*(map_tensors(_unsqueeze, part) for part in (x, y, weights))))

    try:
        in_dims = (None, 0, 0, None if rows.weights is None else 0)
        return vmap(grad(of_one), in_dims)(subset, rows.x, rows.y, rows.weights)
    except RuntimeError:
        # Code that looks at its data, operators without a batching rule, packed sequences: slow
        # but right. An error that has another cause comes again from here.
        each = [_plain_gradient(value, subset, row) for row in rows.batches(1)]
        return tuple(torch.stack(values) for values in zip(*each, strict=True))


def _plain_gradient(
    value: Callable[[tuple[Tensor, ...], Rows], Tensor], subset: tuple[Tensor, ...], row: Rows
) -> tuple[Tensor, ...]:
    leaves = tuple(part.detach().requires_grad_() for part in subset)
    with torch.enable_grad():
        total = value(leaves, row)
    if not total.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(total, leaves, materialize_grads=True)


def _unsqueeze(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


def _with(theta: Tensor, cuts: list[tuple[int, int]], subset: tuple[Tensor, ...]) -> Tensor:
    pieces, position = [], 0
    for (start, stop), values in zip(cuts, subset, strict=True):
        pieces += [theta[position:start], values]
        position = stop
    return torch.cat([*pieces, theta[position:]])


# Layout ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A layer that may be captured, with the trainable parameters it would account for."""

    name: str
    weight: tuple[int, int] | None
    bias: tuple[int, int] | None
    transposed: bool


@dataclass(frozen=True, eq=False)
class _Found:
    """A layout with all that it was found from."""

    few: list[Tensor]
    params: Tensor
    without: frozenset[str]
    layout: GradientLayout

    def is_of(self, few: Rows, params: Tensor, without: frozenset[str]) -> bool:
        tensors = tensors_of((few.x, few.y))
        return self.without == without and _are_equal([*self.few, self.params], [*tensors, params])


# Of each objective: Kronecker factors and gradients of the same rows ask for it in turn.
_FOUND: "WeakKeyDictionary[Objective, _Found]" = WeakKeyDictionary()


def gradient_layout(
    objective: Objective, sample: Rows, *, without: Iterable[str] = ()
) -> GradientLayout:
    """Which layers are captured as pairs and which parameters are kept dense.

    A layer is captured if it is a Linear, an ungrouped Conv, GPT-2's `Conv1D` or a projection of
    self-attention, called once, its weights used nowhere else, and if the captured gradients of a
    few rows are autograd's; it is kept as a pair where that is smaller than its dense gradient.
    Other layers without trained layers inside (norms, embeddings, adapters) are captured on the
    same terms and kept dense. Layers named in `without` are not.
    """
    few, named = sample[:_SAMPLE].unweighted, frozenset(without)
    known = _FOUND.get(objective)
    if known is None or not known.is_of(few, objective.params, named):
        layout = _found_layout(objective, few, named)
        tensors = [leaf.clone() for leaf in tensors_of((few.x, few.y))]
        known = _FOUND[objective] = _Found(tensors, objective.params.clone(), named, layout)
    return known.layout


def _are_equal(mine: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(mine, others, strict=False)
    return len(mine) == len(others) and all(a.dtype == b.dtype and a.equal(b) for a, b in pairs)


@without_denormals
def _found_layout(objective: Objective, few: Rows, without: frozenset[str]) -> GradientLayout:
    candidates = [c for c in _candidates(objective) if c.name not in without]
    local = _local_layers(objective) - without - _shared(objective)
    theta = objective.params.clone().requires_grad_()
    names = {candidate.name for candidate in candidates} | local
    losses = partial(objective.losses, theta, few)
    pairs = capture(objective.module, names, losses, len(few)).pairs
    truth = _truth(objective, few)
    blocks: list[LinearLayout | DenseLayout] = []
    for candidate in candidates:
        if _agrees(candidate, pairs[candidate.name], truth):
            blocks += _kept(objective, candidate, *pairs[candidate.name][0])
    for name in local:
        blocks += _local_blocks(objective, name, pairs[name], truth)
    covered = {place[0] for block in blocks for place in _places(block)}
    blocks += [
        DenseLayout(name, place.start, place.stop)
        for name, place in objective.slices.items()
        if place.start not in covered
    ]
    return GradientLayout(tuple(sorted(blocks, key=lambda b: _places(b)[0])), objective.size)


def uncalled_layers(objective: Objective, sample: Rows) -> set[str]:
    """Layers that `gradient_layout` would capture, had one of its few rows called them."""
    found = {candidate.name: candidate for candidate in _candidates(objective)}
    theta, few = objective.params.clone().requires_grad_(), sample[:_SAMPLE]
    recording = recorded_layers(objective.module, set(found), len(few))
    with torch.enable_grad(), recording as seen:
        (gradient,) = torch.autograd.grad(objective.losses(theta, few).sum(), theta)
    called = {name for name, _, _ in seen.calls}
    # Parameters with a gradient are used without a call: by a function, as attention's are.
    used = {
        name
        for name, candidate in found.items()
        for place in (candidate.weight, candidate.bias)
        if place and bool(gradient[slice(*place)].any())
    }
    return set(found) - called - used


def _truth(objective: Objective, rows: Rows) -> Float[Tensor, "n p"]:
    """One after the other: of so few `vmap` takes longer, of a convolution ten times as long."""

    def value(subset: tuple[Tensor, ...], row: Rows) -> Tensor:
        return objective.losses(subset[0], row).reshape(())

    each = [_plain_gradient(value, (objective.params,), row)[0] for row in rows.batches(1)]
    return torch.stack(each)


def _shared(objective: Objective) -> set[str]:
    """Layers with a parameter that stands in the module under another name as well."""
    every = objective.module.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in every)
    return {
        name
        for name, layer in layers_of(objective.module)
        if any(uses[id(parameter)] > 1 for parameter in _parameters(objective.module, name, layer))
    }


def _parameters(module: nn.Module, name: str, layer: nn.Module) -> list[nn.Parameter]:
    """A layer's parameters; a projection's are those of the attention that it stands in."""
    if not isinstance(layer, InProjection):
        return list(layer.parameters())
    names = [parameter_name(layer, name, role) for role in ("weight", "bias")]
    held = dict(module.named_parameters(remove_duplicate=False))
    return [held[each] for each in names if each in held]


def _local_blocks(
    objective: Objective, name: str, pairs: list[Pair], truth: Float[Tensor, "n p"]
) -> list[DenseLayout]:
    """Of a layer that is no product; none where what was caught are not its gradients."""
    if len(pairs) != 1 or any(part.shape[:1] != truth.shape[:1] for part in pairs[0]):
        return []
    try:
        found = _of_layer(objective, name, *pairs[0])
    except NotCaptured:
        return []
    tolerance = 1e-4 * float(truth.abs().max())
    same = all(
        torch.allclose(values, truth[:, objective.slices[key]], rtol=1e-3, atol=tolerance)
        for key, values in found.items()
    )
    places = {key: objective.slices[key] for key in found}
    return [DenseLayout(key, at.start, at.stop, name) for key, at in places.items()] if same else []


def _candidates(objective: Objective) -> list[_Candidate]:
    shared, found = _shared(objective), []
    for name, layer in layers_of(objective.module):
        if not is_capturable(layer) or name in shared:
            continue
        weight, bias = layer_places(objective, name)
        if weight or bias:
            found.append(_Candidate(name, weight, bias, is_transposed(layer)))
    return found


def layer_places(objective: Objective, name: str) -> list[tuple[int, int] | None]:
    """Where a capturable layer's weight and bias are in θ; None for what is frozen or absent."""
    layer = layer_of(objective.module, name)
    names = [parameter_name(layer, name, role) for role in ("weight", "bias")]
    places = [objective.slices.get(each) for each in names]
    return [(place.start, place.stop) if place else None for place in places]


def _agrees(candidate: _Candidate, pairs: list[Pair], truth: Float[Tensor, "n p"]) -> bool:
    if len(pairs) != 1 or pairs[0][0].ndim == 1 or len(pairs[0][0]) != len(truth):
        return False
    weight, bias = (slice(*cut) if cut else None for cut in (candidate.weight, candidate.bias))
    layer = LinearGradients(candidate.name, *pairs[0], weight, bias, candidate.transposed)
    tolerance = 1e-4 * float(truth.abs().max())
    return all(
        torch.allclose(values, truth[:, place], rtol=1e-3, atol=tolerance)
        for place, values in layer.parts()
    )


def _kept(
    objective: Objective, candidate: _Candidate, a: Tensor, g: Tensor
) -> list[LinearLayout | DenseLayout]:
    positions = a.shape[1] if a.ndim == 3 else 0
    places = [place for place in (candidate.weight, candidate.bias) if place]
    pair, dense = a[0].numel() + g[0].numel(), sum(stop - start for start, stop in places)
    if pair < dense:
        sizes = a.shape[-1], g.shape[-1], positions, candidate.transposed
        return [LinearLayout(candidate.name, candidate.weight, candidate.bias, *sizes)]
    names = {place.start: name for name, place in objective.slices.items()}
    return [
        DenseLayout(names[start], start, stop, candidate.name, candidate.transposed)
        for start, stop in places
    ]


def _places(block: LinearLayout | DenseLayout) -> list[tuple[int, int]]:
    if isinstance(block, DenseLayout):
        return [(block.start, block.stop)]
    return [place for place in (block.weight, block.bias) if place]
