"""What a Linear or convolution layer's gradients are made of, caught by hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

Pair: TypeAlias = tuple[Tensor, Tensor]


def capture(
    module: nn.Module, names: set[str], total: Callable[[], Tensor]
) -> dict[str, list[Pair]]:
    """For each call of each named layer, its inputs and its output's gradients, one a row.

    `total` runs the module once and returns the sum of the rows' losses. The backward pass
    stops at the layers' outputs: no weight gradient is formed.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    with torch.enable_grad(), recorded_layers(module, names, calls):
        loss = total()
    pairs: dict[str, list[Pair]] = {name: [] for name in names}
    if not calls:
        return pairs
    outputs = [output for _, _, output in calls]
    gradients = torch.autograd.grad(loss, outputs, materialize_grads=True)
    for (name, x, _), g in zip(calls, gradients, strict=True):
        pairs[name].append(layer_pair(module.get_submodule(name), x.detach(), g))
    return pairs


@contextmanager
def recorded_layers(
    module: nn.Module, names: set[str], calls: list[tuple[str, Tensor, Tensor]]
) -> Iterator[None]:
    """Append name, input and output of each named layer to `calls` whenever it runs."""

    def record(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            calls.append((name, inputs[0], output))
            return output.clone()  # an in-place activation may follow

        return hook

    with ExitStack() as hooks:
        for name in names:
            handle = module.get_submodule(name).register_forward_hook(record(name))
            hooks.callback(handle.remove)
        yield


def layer_pair(layer: nn.Module, x: Tensor, g: Tensor) -> Pair:
    """Input and output gradient of a layer as `(n, [positions,] width)`."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return _patches(layer, x), g.flatten(2).transpose(1, 2)
    if x.ndim > 3:
        return x.flatten(1, -2), g.flatten(1, -2)
    return x, g


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Float[Tensor, "n t d_in"]:
    """What the kernel sees at each output position, in the order of its weights."""
    sizes = zip(layer.kernel_size, layer.dilation, strict=True)
    if layer.padding == "same":
        total = [dilation * (size - 1) for size, dilation in sizes]
        sides = [(n // 2, n - n // 2) for n in total]
    else:
        padding = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
        sides = [(int(n), int(n)) for n in padding]
    x = nn.functional.pad(x, [n for side in reversed(sides) for n in side])
    if isinstance(layer, nn.Conv2d):
        return nn.functional.unfold(
            x, layer.kernel_size, layer.dilation, 0, layer.stride
        ).transpose(1, 2)
    wide = nn.functional.unfold(
        x.unsqueeze(2), (1, *layer.kernel_size), (1, *layer.dilation), 0, (1, *layer.stride)
    )
    return wide.transpose(1, 2)


def is_capturable(layer: nn.Module) -> bool:
    """Whether the layer's gradient is a sum of products of `capture`'s pairs."""
    if type(layer).forward is nn.Linear.forward:
        return True
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return False
    return layer.groups == 1 and layer.padding_mode == "zeros"
