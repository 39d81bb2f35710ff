"""What a perturbation moves: the model's inputs, or the output of one of its modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_dag.errors import ModelError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.structures import map_tensors, tensors_of

_SAMPLE = 2  # rows on which a module's output is looked at


class InputPoint:
    """The floating inputs of the model; integer ones (tokens) have no derivative."""

    def __init__(self, objective: Objective, rows: Rows):
        if not self.leaves(rows):
            dtypes = ", ".join(str(leaf.dtype) for leaf in tensors_of(rows.x))
            raise ModelError(
                f"inputs of dtype {dtypes} have no derivative; perturbation influences need a "
                f"floating-point input{_cure(objective.module)}"
            )

    def leaves(self, rows: Rows) -> list[Tensor]:
        """Where the tensors stand in which rows are differentiated, leading axis = row."""
        return [leaf for leaf in tensors_of(rows.x) if leaf.is_floating_point()]

    def losses(
        self, objective: Objective, theta: Float[Tensor, " p"], rows: Rows, leaves: list[Tensor]
    ) -> Float[Tensor, " n"]:
        """The loss of each row with the tensors at `leaves`."""
        remaining = iter(leaves)
        x = map_tensors(lambda leaf: next(remaining) if leaf.is_floating_point() else leaf, rows.x)
        return objective.losses(theta, Rows(x, rows.y))

    def structured(self, rows: Rows, results: list[Tensor]) -> Any:
        """Results, one a leaf, as the caller knows them."""
        remaining = iter(results)
        filled = map_tensors(
            lambda leaf: next(remaining) if leaf.is_floating_point() else None, rows.x
        )
        if isinstance(filled, dict):
            return {name: value for name, value in filled.items() if value is not None}
        return filled


class OutputPoint:
    """What a module of the model puts out, such as an embedding's vectors, with a shift added.

    The module's own parameters stay part of θ: fitting again moves them too.
    """

    def __init__(self, objective: Objective, rows: Rows, name: str):
        self.name, self.output = name, module_output(objective, rows[:_SAMPLE], name)

    def leaves(self, rows: Rows) -> list[Tensor]:
        return [self.output.new_zeros(len(rows), *self.output.shape[1:])]

    def losses(
        self, objective: Objective, theta: Float[Tensor, " p"], rows: Rows, leaves: list[Tensor]
    ) -> Float[Tensor, " n"]:
        (shift,) = leaves
        with _hooked(objective.module, self.name, lambda output: output + shift):
            return objective.losses(theta, rows)

    def structured(self, rows: Rows, results: list[Tensor]) -> Tensor:
        return results[0]


Point: TypeAlias = InputPoint | OutputPoint


def perturbation_point(objective: Objective, rows: Rows, wrt: str | None) -> Point:
    """The model's inputs, or the output of the module named `wrt`.

    Raises `ModelError` when there is nothing to differentiate in, naming what there is.
    """
    return InputPoint(objective, rows) if wrt is None else OutputPoint(objective, rows, wrt)


def module_output(objective: Objective, rows: Rows, name: str) -> Tensor:
    """What the module of that name puts out, one row a sample.

    Raises `ModelError` for a name that the model does not have, and for a module that is not
    called exactly once or does not return one floating-point tensor with a row for each sample.
    """
    modules = dict(objective.module.named_modules())
    if not name or name not in modules:
        known = ", ".join(repr(known) for known in modules if known)
        raise ModelError(f"the model has no module {name!r}; it has {known or 'none inside'}")
    output = _output(objective, rows, name)
    _output(objective, rows[:1], name)  # as many positions as rows would pass for them
    return output


def _output(objective: Objective, rows: Rows, name: str) -> Tensor:
    outputs: list[Any] = []
    # With gradients, or the fused kernels of inference would bypass the modules inside.
    theta = objective.params.clone().requires_grad_()
    with torch.enable_grad(), _hooked(objective.module, name, outputs.append):
        objective.losses(theta, rows)
    if len(outputs) != 1:
        raise ModelError(
            f"module {name!r} is called {len(outputs)} times for a batch; perturbation influences "
            "need the output of one call"
        )
    (output,) = outputs
    if not isinstance(output, Tensor):
        raise ModelError(f"module {name!r} returns a {type(output).__name__}, wanted one tensor")
    if not output.is_floating_point() or output.ndim == 0 or len(output) != len(rows):
        raise ModelError(
            f"module {name!r} returns {output.dtype} of shape {tuple(output.shape)} for "
            f"{len(rows)} rows; wanted floating-point numbers with the row as leading axis"
        )
    return output.detach()


@contextmanager
def _hooked(module: nn.Module, name: str, function: Callable[[Any], Any]) -> Iterator[None]:
    """Pass the named module's output through the function (None: leave it as it is)."""
    handle = module.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: function(output)
    )
    try:
        yield
    finally:
        handle.remove()


def _cure(module: nn.Module) -> str:
    """How to ask for the derivative in the first embedding's vectors, if there is an embedding."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    names = (name for name, inner in module.named_modules() if isinstance(inner, kinds) and name)
    name = next(names, None)
    return "" if name is None else f", or say wrt={name!r} for the derivative in what it puts out"
