"""The loss of one sample and of the mean over samples, as pure functions of the parameters θ."""

import copy
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call

from influence_dag.errors import ModelError
from influence_dag.losses import LossFunction, ReducedLoss, per_sample_loss
from influence_dag.objective.chosen_output import chosen_output
from influence_dag.objective.numbers import check_digits
from influence_dag.objective.rows import Rows
from influence_dag.objective.twice_differentiable import TwiceDifferentiable


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat numbers below the smallest normal one as zero in this thread, then as before.

    Saturated losses and weights that L2 decay drives towards zero give denormal numbers, on which
    some processors take a hundred times as long; what is lost is below 1e-38. Set around a
    computation rather than at import: it is a processor flag that all of the thread's code feels.
    Torch's own worker threads keep theirs, which is why θ is rid of them too.
    """
    before = sys.float_info.min / 2 == 0  # Python's own: of a tensor a device might be waited for
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def without_denormal_entries(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values, in place, with zero for those up to the smallest normal number.

    Of a product's operand: torch's own worker threads, which do not flush them, take fourteen times
    as long where one entry in two hundred is denormal.
    """
    return torch.hardshrink(values, torch.finfo(values.dtype).tiny, out=values)


class Objective:
    r"""A module with a loss, as functions of a flat parameter vector $\theta$.

    $\theta$ (`params`, shape `(p,)`) holds the parameters with `requires_grad`, each row-major,
    in the order of `module.named_parameters()`; a tied weight is one entry. Frozen parameters
    and buffers are constants. `output` names the prediction in a module's dict or tuple of outputs
    (see `chosen_output`). `params` is a copy taken here: later training does not move it.
    Parameters without a number have no place in it, which would be another one's.

    Denormal entries are zero in it, in every thread's arithmetic (see `flushed_denormals`).

    Functions swap parameters inside the module while they run: one thread per module.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | LossFunction,
        *,
        measurement: LossFunction | None = None,
        output: str | None = None,
    ):
        self.module = module
        self.output = output
        trainable = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.numel()
        }
        if not trainable:
            raise ModelError(
                f"{type(module).__name__} has no trainable parameter (requires_grad=True); "
                "influence functions need at least one"
            )
        check_digits(trainable.items())
        self.parameter_names: tuple[str, ...] = tuple(trainable)
        self.parameter_shapes = tuple(parameter.shape for parameter in trainable.values())
        self.params: Float[Tensor, " p"] = torch.cat(
            [parameter.detach().reshape(-1) for parameter in trainable.values()]
        ).clone()
        self.loss = _beside(self.params, per_sample_loss(loss))
        self.takes = self.loss  # what the prediction is chosen for
        self.measurement = measurement and _beside(self.params, measurement)
        self.params[self.params.abs() < torch.finfo(self.params.dtype).tiny] = 0.0
        self.slices = _slices(self.parameter_names, self.parameter_shapes)
        self._sizes = [shape.numel() for shape in self.parameter_shapes]
        self._tied = _tied(module)
        self._kernels = TwiceDifferentiable.of(module)

    @property
    def run_otherwise(self) -> str:
        """What of the module is run in a form that has second derivatives, in words."""
        return self._kernels.said

    @property
    def size(self) -> int:
        """The number p of trainable parameters."""
        return len(self.params)

    @property
    def dtype(self) -> torch.dtype:
        return self.params.dtype

    @property
    def device(self) -> torch.device:
        return self.params.device

    def in_float64(self, theta: Float[Tensor, " p"] | None = None) -> "Objective":
        """The same in float64, on a copy of its module, at θ or where it is."""
        if theta is None and self.dtype == torch.float64:
            return self
        module = copy.deepcopy(self.module).double()
        self.put(self.params if theta is None else theta, module)
        return Objective(module, self.loss, measurement=self.measurement, output=self.output)

    @torch.no_grad()
    def put(self, theta: Float[Tensor, " p"], module: nn.Module) -> None:
        """θ as the parameters of this module or one like it, in their precision."""
        for name, value in self.unflatten(theta).items():
            module.get_parameter(name).copy_(value)

    def unflatten(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """θ as named tensors: copies, since modules may change theirs in place (`max_norm`)."""
        # One step, also of a gradient; views of one split could not be changed.
        parts = cast(tuple[Tensor, ...], torch.split_with_sizes_copy(theta, self._sizes))
        return {
            name: part.view(shape)
            for name, part, shape in zip(
                self.parameter_names, parts, self.parameter_shapes, strict=True
            )
        }

    def outputs(self, theta: Float[Tensor, " p"], x: Any) -> Any:
        """The module's outputs for a batch of inputs, leading axis = sample.

        The prediction that the module returns, a tensor, or what its loss takes; a number without
        axes, from a module that squeezes the outputs of a single row, has its axis again.
        """
        return self.run(self.unflatten(theta), x)

    def run(self, state: dict[str, Tensor], x: Any) -> Any:
        """The outputs with some named parameters and buffers in the place of the module's own."""
        outputs = chosen_output(self.returned(state, x), self.output, self.takes)
        if isinstance(outputs, Tensor) and outputs.ndim == 0:
            return outputs.unsqueeze(0)
        return outputs

    def returned(self, state: dict[str, Tensor], x: Any) -> Any:
        """All that the module returns."""
        args = tuple(x) if isinstance(x, tuple | list) else () if isinstance(x, dict) else (x,)
        kwargs = x if isinstance(x, dict) else {}
        also = {name: state[first] for name, first in self._tied.items() if first in state}
        with self._kernels:
            return functional_call(self.module, also | state, args, kwargs, tie_weights=False)

    def losses(self, theta: Float[Tensor, " p"], rows: Rows) -> Tensor:
        """The loss of each row, shape `(b,)` (that the loss keeps to it is for `check` to see)."""
        return self.loss(self.outputs(theta, rows.x), rows.y)

    def total_loss(self, theta: Float[Tensor, " p"], rows: Rows) -> Num[Tensor, ""]:
        r"""$\sum_i w_i L(z_i, \theta)$ over the rows, w being their weights, or 1."""
        return rows.weighted(self.losses(theta, rows)).sum()

    def mean_loss(self, theta: Float[Tensor, " p"], rows: Rows) -> Num[Tensor, ""]:
        r"""$\sum_i w_i L(z_i, \theta) / \sum_i w_i$ over the rows."""
        return self.total_loss(theta, rows) / rows.weight_sum

    def measurements(self, theta: Float[Tensor, " p"], rows: Rows) -> Tensor:
        """What influences are on, shape `(b,)`: the measurement, or the loss without one."""
        measure = self.measurement or self.loss
        return measure(self.outputs(theta, rows.x), rows.y)

    def check(self, *sets: Rows) -> None:
        """Raise `ModelError` naming the cause if influence functions cannot use this model.

        Looks, with each of some sets of rows in turn, for active dropout and batch statistics, a
        loss of the wrong shape, labels out of the outputs' range, values that do not repeat or
        depend on the batch, and non-finite losses. Two passes over all rows, two backward passes
        over a few.
        """
        from influence_dag.objective.checks import check_objective

        copied = functools.cache(self.in_float64)  # once for all sets
        for rows in dict.fromkeys(sets):
            check_objective(self, rows, copied)


def _tied(module: nn.Module) -> dict[str, str]:
    """Further names of tensors that have several, with the first; looked for once, not a call."""
    names: dict[int, str] = {}
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    first = {name: names.setdefault(id(tensor), name) for name, tensor in tensors}
    return {name: known for name, known in first.items() if known != name}


def _beside(params: Tensor, function: LossFunction) -> LossFunction:
    """A loss or measurement, moved to the parameters' device where it is a module with tensors."""
    module = function.whole if isinstance(function, ReducedLoss) else function
    if isinstance(module, nn.Module):
        module.to(params.device)
    return function


def _slices(names: tuple[str, ...], shapes: tuple[torch.Size, ...]) -> dict[str, slice]:
    slices, start = {}, 0
    for name, shape in zip(names, shapes, strict=True):
        slices[name] = slice(start, start + shape.numel())
        start += shape.numel()
    return slices
