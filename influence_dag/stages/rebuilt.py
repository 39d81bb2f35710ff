"""Whether the module that later stages build is the one that was fitted.

What is stored of a model is its state dict. A mean in a plain attribute, a closure, a global of the
code that fitted it, numbers that `model.build` draws from a generator nobody seeds: later stages
would differentiate another model. So the module is built once more, by code imported anew, filled
with what is about to be stored, and compared on every row.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_dag.datasets.slots import Axis
from influence_dag.errors import ModelError
from influence_dag.fingerprints import fingerprint
from influence_dag.objective import modules
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages.compared import Both, Difference
from influence_dag.stages.reading import study_objective
from influence_dag.structures import tensors_of
from influence_dag.study.imported import imported_anew
from influence_dag.study.study import Study
from influence_dag.texts import listed

CLOSE = 1e-9  # of the largest number: two builds of one module round alike
_PLACES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted objective, the state dict that its module began with, and rows to compare on."""

    objective: Objective
    started_from: Mapping[str, Tensor]
    rows: Mapping[Axis, Rows]
    batch_size: int


@contextmanager
def rows_kept(rows: Rows, fit: str) -> Iterator[None]:
    """Raise `ModelError` where a fit of people's own changes the rows that it is given.

    What is measured of θ afterwards (a minimum, its loss) would be of rows that nobody else reads.
    """
    before = _content(rows)
    yield
    if _content(rows) != before:
        raise ModelError(
            f"{fit} changes its rows in place, and all later stages read them as the data has "
            "them; let it work on a copy (x = rows.x * 0.5 instead of rows.x *= 0.5), and scale "
            "inputs in the data or in the module, where the scale is a buffer"
        )


def _content(rows: Rows) -> str:
    leaves = tensors_of((rows.x, rows.y, rows.weights))
    return fingerprint([leaf.detach().cpu().numpy() for leaf in leaves])


def check_rebuilt(study: Study, fitted: Fitted, stored: bytes) -> tuple[Tensor, Tensor]:
    """Raise `ModelError` for what differs, by name, once the module is built and filled anew.

    Returns the mean loss of the training rows and its gradient, which are compared as well.
    """
    settings = study.settings.model
    own = ("model.build", "model.loss", "model.measurement")
    code = [name for field, name in study.settings.callables.items() if field in own]
    with imported_anew(code, study.root):
        module = modules.build_module(settings, study.root, torch.float64)
        module = module.to(fitted.objective.device)
        if settings.fit is not None:
            _check_start(settings.build, fitted.started_from, module)
        by = settings.fit if isinstance(settings.fit, str) else "the fit"
        _fill(module, stored, fitted.objective.module, by)
        again = study_objective(study, module.eval())
        return _check_same(fitted, again, by=by)


def _fill(module: nn.Module, stored: bytes, fitted: nn.Module, by: str) -> None:
    """Give a module that is made anew what is about to be stored of the fitted one."""
    try:
        modules.load_state(module, stored, "the state that was just fitted")
    except ModelError as error:
        mine, built = (
            {name: value.shape for name, value in each.state_dict().items()}
            for each in (fitted, module)
        )
        parts = sorted(name for name in mine.keys() | built if mine.get(name) != built.get(name))
        if not parts:
            raise ModelError(
                f"what {by} has left is not to be put into the network that model.build makes "
                f"({error}); keep every number finite in the fit, and tied what model.build ties"
            ) from error
        raise ModelError(
            f"{by} has left another network than model.build makes: {_some(parts)} are in one of "
            "them alone, or have two shapes. Later stages build the network and fill it with what "
            "is stored: make every part in model.build, in its shape, and set numbers in the fit"
        ) from error


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


def _check_same(fitted: Fitted, again: Objective, *, by: str) -> tuple[Tensor, Tensor]:
    mine = fitted.objective
    if mine.parameter_names != again.parameter_names:
        changed = sorted(set(mine.parameter_names) ^ set(again.parameter_names))
        raise ModelError(
            f"{by} changed which parameters are trainable ({_some(changed)}): later stages build "
            "the module anew, and would not know; set requires_grad in model.build"
        )
    means: list[tuple[Tensor, Tensor]] = []
    for axis, rows in fitted.rows.items():
        both = Both(mine, again, rows, fitted.batch_size)
        if axis.name == "test":
            found = both.of_test_rows()
        else:
            found, mean = both.of_training_rows()
            means.append(mean)
        for what, difference in found:
            _compare(what, difference, mine, again, by, axis)
    return means[0]


def _compare(
    what: str, difference: Difference, fitted: Objective, again: Objective, by: str, axis: Axis
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
    yield from others.keys() - dict(one.named_modules()).keys()
    for name, module in one.named_modules():
        twin = others.get(name)
        if twin is None or _class(twin) != _class(module):
            yield name or "its class"
            continue
        mine, theirs = (_own(each) for each in (module, twin))
        for key in mine.keys() | theirs.keys():
            if key not in mine or key not in theirs or not _equal(mine[key], theirs[key]):
                yield f"{name}.{key}" if name else key


def _class(module: nn.Module) -> tuple[str, str]:
    """By name: of code that was imported anew the classes are others."""
    return type(module).__module__, type(module).__qualname__


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
