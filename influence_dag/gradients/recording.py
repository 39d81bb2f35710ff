"""Inputs and outputs of layers, recorded while their network runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from influence_dag.gradients.attention import RecordedAttention
from influence_dag.gradients.uncaptured import NotCaptured

_INNERMOST = vars(torch._C)["_functorch"].peek_interpreter_stack
_ROUNDING = 1000  # units: of values of the same network in another order of operations


@dataclass(eq=False)
class Recorded:
    """Calls of layers as name, input and output; and the layers that were run in another form."""

    calls: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    rebuilt: set[str] = field(default_factory=set)

    @contextmanager
    def telling_failures(self) -> Iterator[None]:
        """`NotCaptured` for an error behind layers in another form."""
        try:
            yield
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.rebuilt:
                raise
            raise NotCaptured(self.rebuilt) from error

    def check(self, found: Tensor, expected: Tensor) -> None:
        """`NotCaptured` if the network has other values with its layers in another form."""
        rounding = _ROUNDING * torch.finfo(expected.dtype).eps
        size = expected.abs() + expected.abs().mean()
        if found.shape != expected.shape or not bool(
            ((found.detach() - expected).abs() <= rounding * size).all()
        ):
            raise NotCaptured(self.rebuilt)


@contextmanager
def recorded_layers(module: nn.Module, names: set[str], rows: int) -> Iterator[Recorded]:
    """Record name, input and output of each named layer whenever it runs, for a batch of `rows`.

    Two kinds run in another form, which makes their calls those of rows: an embedding of positions
    alone, `(t,)` or `(1, t)`, is repeated for each row, where the network would broadcast it; and
    the products of an `nn.MultiheadAttention` are taken one by one.
    """
    seen, around = Recorded(), _transforms()

    def record(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
            given = (*inputs, *kwargs.values())
            if (
                len(given) != 1
                or not isinstance(given[0], Tensor)
                or not isinstance(output, Tensor)
                or _transforms() > around
            ):
                return output  # not captured: no call is seen
            x = given[0]
            if isinstance(layer, nn.Embedding) and _is_of_positions(x, rows):
                seen.rebuilt.add(name)
                x, output = (_repeated(part, x.ndim, rows) for part in (x, output))
            seen.calls.append((name, x, output))
            return output.clone()  # an in-place activation may follow

        return hook

    with ExitStack() as hooks:
        attention = RecordedAttention(module, names, seen.calls, seen.rebuilt)
        if attention.layers:
            hooks.enter_context(attention)
        for name, layer in module.named_modules():
            if name in names:
                hooks.callback(layer.register_forward_hook(record(name), with_kwargs=True).remove)
        yield seen


def _transforms() -> int:
    """How many `torch.func` transforms are around what runs, the network's own inside of ours."""
    innermost = _INNERMOST()
    return innermost.level() if innermost else 0


def _is_of_positions(x: Tensor, rows: int) -> bool:
    """Whether an embedding's inputs are the same for all rows, not one or more for each."""
    if x.ndim == 1:
        return len(x) != rows or torch.equal(x, torch.arange(rows, device=x.device))
    return x.ndim == 2 and len(x) == 1 < rows


def _repeated(values: Tensor, axes: int, rows: int) -> Tensor:
    values = values.unsqueeze(0) if axes == 1 else values
    return values.expand(rows, *values.shape[1:])
