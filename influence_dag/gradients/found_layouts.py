"""How the gradients of a model are kept, found out from a few rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.gradients import layers
from influence_dag.gradients.blocks import LinearGradients
from influence_dag.gradients.capture import Pair, capture
from influence_dag.gradients.layouts import DenseLayout, GradientLayout, LinearLayout
from influence_dag.gradients.local import is_local, local_gradients
from influence_dag.gradients.recording import recorded_layers
from influence_dag.gradients.row_by_row import gradient_of_row
from influence_dag.gradients.uncaptured import NotCaptured
from influence_dag.objective.objective import Objective, Rows, flushed_denormals
from influence_dag.structures import tensors_of

_SAMPLE = 3  # rows on which captured gradients are compared with autograd's


def local_layers(objective: Objective) -> set[str]:
    return {name for name, layer in objective.module.named_modules() if is_local(name, layer)}


def of_layer(objective: Objective, name: str, x: Tensor, g: Tensor) -> dict[str, Tensor]:
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


@flushed_denormals()
def _found_layout(objective: Objective, few: Rows, without: frozenset[str]) -> GradientLayout:
    candidates = [c for c in _candidates(objective) if c.name not in without]
    local = local_layers(objective) - without - _shared(objective)
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


def uncalled_layers(objective: Objective, sample: Rows, *, besides: set[str]) -> set[str]:
    """Layers that `gradient_layout` would capture, had one of its few rows called them.

    Those `besides` which they are asked for are known to be called, or not wanted.
    """
    found = {each.name: each for each in _candidates(objective) if each.name not in besides}
    if not found:
        return set()
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

    each = [gradient_of_row(value, (objective.params,), row)[0] for row in rows.batches(1)]
    return torch.stack(each)


def _shared(objective: Objective) -> set[str]:
    """Layers with a parameter that stands in the module under another name as well."""
    every = objective.module.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in every)
    return {
        name
        for name, layer in layers.layers_of(objective.module)
        if any(uses[id(parameter)] > 1 for parameter in _parameters(objective.module, name, layer))
    }


def _parameters(module: nn.Module, name: str, layer: nn.Module) -> list[nn.Parameter]:
    """A layer's parameters; a projection's are those of the attention that it stands in."""
    if not isinstance(layer, layers.InProjection):
        return list(layer.parameters())
    names = [layers.parameter_name(layer, name, role) for role in ("weight", "bias")]
    held = dict(module.named_parameters(remove_duplicate=False))
    return [held[each] for each in names if each in held]


def _local_blocks(
    objective: Objective, name: str, pairs: list[Pair], truth: Float[Tensor, "n p"]
) -> list[DenseLayout]:
    """Of a layer that is no product; none where what was caught are not its gradients."""
    if len(pairs) != 1 or any(part.shape[:1] != truth.shape[:1] for part in pairs[0]):
        return []
    try:
        found = of_layer(objective, name, *pairs[0])
    except NotCaptured:
        return []
    places = {key: objective.slices[key] for key in found}
    if not _are_true(((places[key], values) for key, values in found.items()), truth):
        return []
    return [DenseLayout(key, at.start, at.stop, name) for key, at in places.items()]


def _candidates(objective: Objective) -> list[_Candidate]:
    shared, found = _shared(objective), []
    for name, layer in layers.layers_of(objective.module):
        if not layers.is_capturable(layer) or name in shared:
            continue
        weight, bias = layer_places(objective, name)
        if weight or bias:
            found.append(_Candidate(name, weight, bias, layers.is_transposed(layer)))
    return found


def layer_places(objective: Objective, name: str) -> list[tuple[int, int] | None]:
    """Where a capturable layer's weight and bias are in θ; None for what is frozen or absent."""
    layer = layers.layer_of(objective.module, name)
    names = [layers.parameter_name(layer, name, role) for role in ("weight", "bias")]
    places = [objective.slices.get(each) for each in names]
    return [(place.start, place.stop) if place else None for place in places]


def _agrees(candidate: _Candidate, pairs: list[Pair], truth: Float[Tensor, "n p"]) -> bool:
    if len(pairs) != 1 or pairs[0][0].ndim == 1 or len(pairs[0][0]) != len(truth):
        return False
    weight, bias = (slice(*cut) if cut else None for cut in (candidate.weight, candidate.bias))
    layer = LinearGradients(candidate.name, *pairs[0], weight, bias, candidate.transposed)
    return _are_true(layer.parts(), truth)


def _are_true(parts: Iterable[tuple[slice, Tensor]], truth: Float[Tensor, "n p"]) -> bool:
    """Whether gradients with their places in θ are autograd's."""
    tolerance = 1e-4 * float(truth.abs().max())
    return all(
        torch.allclose(values, truth[:, place], rtol=1e-3, atol=tolerance)
        for place, values in parts
    )


def _kept(
    objective: Objective, candidate: _Candidate, a: Tensor, g: Tensor
) -> list[LinearLayout | DenseLayout]:
    positions = a.shape[1] if a.ndim == 3 else 0
    places = [place for place in (candidate.weight, candidate.bias) if place]
    pair, dense = a[0].numel() + g[0].numel(), sum(stop - start for start, stop in places)
    if candidate.weight and pair < dense:  # a bias alone is never longer than its pair
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
