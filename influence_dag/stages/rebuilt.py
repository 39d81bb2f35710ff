"""Whether the module that later stages build is the one that was fitted.

What is stored of a model is its state dict. A mean in a plain attribute, a closure, a global of the
code that fitted it, numbers that `model.build` draws from a generator nobody seeds: later stages
would differentiate another model. So the module is built once more, by code imported anew, filled
with what is about to be stored, and compared on every row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError
from influence_dag.objective import modules
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages.reading import study_objective
from influence_dag.structures import tensors_of
from influence_dag.study.imported import imported_anew
from influence_dag.study.study import Study
from influence_dag.texts import listed

CLOSE = 1e-9  # of the largest number: two builds of one module round alike
FIRST = 8  # rows whose gradients are compared one by one
_PLACES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted objective, the state dict that its module began with, and rows to compare on."""

    objective: Objective
    started_from: Mapping[str, Tensor]
    rows: Mapping[Axis, Rows]
    batch_size: int


def check_rebuilt(study: Study, fitted: Fitted, stored: bytes) -> None:
    """Raise `ModelError` for what differs, by name, once the module is built and filled anew."""
    settings = study.settings.model
    own = ("model.build", "model.loss", "model.measurement")
    code = [name for field, name in study.settings.callables.items() if field in own]
    with imported_anew(code, study.root):
        module = modules.build_module(settings, study.root, torch.float64)
        module = module.to(fitted.objective.device)
        if settings.fit is not None:
            _check_start(settings.build, fitted.started_from, module)
        modules.load_state(module, stored, "the state that was just fitted")
        again = study_objective(study, module.eval())
        _check_same(fitted, again, by=settings.fit if isinstance(settings.fit, str) else "the fit")


def _check_start(build: str, first: Mapping[str, Tensor], module: nn.Module) -> None:
    """Built twice from the same seeds, a module starts from the same numbers."""
    second = module.state_dict()
    moved = [
        name
        for name, value in second.items()
        if name not in first or not torch.equal(first[name].to(value), value)
    ]
    if moved:
        raise ModelError(
            f"model.build: {build} makes another {_some(moved)} each time it is called, although "
            "the generators of torch, numpy and random are seeded before; draw from these, or from "
            "a generator of your own with a fixed seed"
        )


def _check_same(fitted: Fitted, again: Objective, *, by: str) -> None:
    mine = fitted.objective
    if mine.parameter_names != again.parameter_names:
        changed = sorted(set(mine.parameter_names) ^ set(again.parameter_names))
        raise ModelError(
            f"{by} changed which parameters are trainable ({_some(changed)}): later stages build "
            "the module anew, and would not know; set requires_grad in model.build"
        )
    for axis, rows in fitted.rows.items():
        for what, found in _values(fitted, again, rows, axis.name == "test"):
            _compare(what, found, mine, again, by, axis)


def _values(
    fitted: Fitted, again: Objective, rows: Rows, tested: bool
) -> Iterator[tuple[str, "_Difference"]]:
    """By how much what is to be equal differs, of the fitted objective and the one made anew."""
    mine = fitted.objective
    for difference in _of_outputs(mine, again, rows, fitted.batch_size):
        yield "outputs", difference
    if tested:
        if mine.measurement is not None:
            measured = [_each(each.measurements, rows, fitted) for each in (mine, again)]
            yield "measurements", _difference(measured[0], measured[1])
        return
    losses = [_each(each.losses, rows, fitted) for each in (mine, again)]
    yield "losses", _difference(losses[0], losses[1])
    yield "gradients", _difference(_gradients(mine, rows), _gradients(again, rows))
    means = [loss_and_gradient(each, rows, fitted.batch_size)[1] for each in (mine, again)]
    yield "mean gradients", _difference(means[0][None], means[1][None])


@dataclass(frozen=True, eq=False)
class _Difference:
    """The largest of each row between two arrays, and the largest number of the first one.

    Of arrays of two shapes there are only these.
    """

    rows: Tensor
    scale: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def _difference(one: Tensor, other: Tensor) -> _Difference:
    if one.shape != other.shape:
        return _Difference(one.new_zeros(0), 0.0, (tuple(one.shape), tuple(other.shape)))
    difference = (one.double() - other.double()).abs().nan_to_num(torch.inf)
    difference[(one == other) | (one.isnan() & other.isnan())] = 0.0
    rows = difference.reshape(len(one), -1).amax(1) if one.numel() else one.new_zeros(len(one))
    scale = float(one.double().nan_to_num(0, 0, 0).abs().max()) if one.numel() else 0.0
    return _Difference(rows, scale, (tuple(one.shape), tuple(other.shape)))


def _of_outputs(mine: Objective, again: Objective, rows: Rows, size: int) -> list[_Difference]:
    """Of each tensor of the outputs, which are in memory for a batch of rows alone."""
    batches = []
    for batch in rows.batches(size):
        with torch.no_grad():
            leaves = [tensors_of(each.outputs(each.params, batch.x)) for each in (mine, again)]
        batches.append([_difference(*pair) for pair in zip(*leaves, strict=True)])
    return [_joined(parts) for parts in zip(*batches, strict=True)]


def _joined(parts: Sequence[_Difference]) -> _Difference:
    """Of consecutive rows; of those of two shapes the first."""
    apart = next((part for part in parts if part.shapes[0] != part.shapes[1]), None)
    if apart is not None:
        return apart
    rows = torch.cat([part.rows for part in parts])
    return _Difference(rows, max(part.scale for part in parts), parts[0].shapes)


def _each(function: Any, rows: Rows, fitted: Fitted) -> Tensor:
    theta = fitted.objective.params
    with torch.no_grad():
        return torch.cat([function(theta, batch) for batch in rows.batches(fitted.batch_size)])


def _gradients(objective: Objective, rows: Rows) -> Tensor:
    """Of the first rows, one by one."""
    few = min(FIRST, len(rows))
    singles = [rows[k : k + 1].unweighted for k in range(few)]
    return torch.stack([loss_and_gradient(objective, row, 1)[1] for row in singles])


def loss_and_gradient(objective: Objective, rows: Rows, size: int) -> tuple[Tensor, Tensor]:
    """The mean loss and its gradient, over batches: activations of few rows are in memory."""
    theta = objective.params.detach().clone().requires_grad_()
    loss, gradient = torch.zeros_like(theta[0]).detach(), torch.zeros_like(theta).detach()
    for batch in rows.batches(size):
        total = objective.total_loss(theta, batch)
        if total.requires_grad:  # of a batch of which no row depends on θ it is zero
            gradient += torch.autograd.grad(total, theta)[0]
        loss += total.detach()
    return loss / rows.weight_sum, gradient / rows.weight_sum


def _compare(
    what: str, difference: _Difference, fitted: Objective, again: Objective, by: str, axis: Axis
) -> None:
    one, other = difference.shapes
    if one == other:
        apart = difference.rows > CLOSE * difference.scale
        if not apart.any():
            return
        row, size = int(apart.nonzero()[0, 0]), f"by up to {float(difference.rows.max()):.2g}"
    else:
        row, size = 0, f"in shape, {one} and {other}"
    at = "" if what == "mean gradients" else f", first at {axis.name} row {_id(axis, row)!r}"
    outside = _left_outside(fitted, again)
    raise ModelError(
        "the module that model.build makes, with the parameters and buffers that are stored, is "
        f"not the one that {by} has left: {what} differ {size}{at}.{outside} What a fit finds out "
        "belongs into parameters or buffers (self.register_buffer('mean', torch.zeros(3)) in the "
        "module, module.mean.copy_(…) in the fit), and so does what model.build draws"
    )


def _id(axis: Axis, row: int) -> str:
    return str(axis.ids[axis.slots[row]])


def _left_outside(fitted: Objective, again: Objective) -> str:
    """Attributes and buffers by which the two modules differ, in words."""
    names = sorted(set(_differing(fitted.module, again.module)))
    if names:
        return f" They differ in {_some(names)}, which no state dict holds."
    return (
        " All that they have is in the state dict: it is code that remembers (a global, a "
        "closure), or that draws."
    )


def _differing(one: nn.Module, other: nn.Module) -> Iterator[str]:
    others = dict(other.named_modules())
    for name, module in one.named_modules():
        twin = others.get(name)
        if twin is None:
            yield name
            continue
        mine, theirs = (_own(each) for each in (module, twin))
        for key in mine.keys() | theirs.keys():
            if key not in mine or key not in theirs or not _equal(mine[key], theirs[key]):
                yield f"{name}.{key}" if name else key


def _own(module: nn.Module) -> dict[str, Any]:
    """Plain attributes and buffers that are not saved."""
    hidden = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    plain = {name: value for name, value in vars(module).items() if name not in _PLACES}
    return plain | hidden


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other.to(one))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, int | float | str | bool | tuple | list | dict) or one is None:
        try:
            return bool(one == other)
        except (RuntimeError, ValueError):
            return False
    return type(one).__qualname__ == type(other).__qualname__ and not callable(one)


def _some(names: list[str]) -> str:
    return listed(names, 5, shown=repr)
