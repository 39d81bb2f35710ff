"""What parameters and buffers have to be: real, dense, of 32 bits, in memory of their own."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from influence_dag.errors import ModelError


def check_numbers(named: Iterable[tuple[str, Tensor]], context: str = "") -> None:
    """A `ModelError` for tensors that are no real numbers, or none yet."""
    for name, value in named:
        if is_lazy(value):
            raise ModelError(
                f"{context}the size of {name} is not known before the first batch; give lazy "
                "layers their sizes, or call the module once"
            )
        if value.is_meta or value.is_complex() or value.layout != torch.strided:
            seen = "on the meta device" if value.is_meta else f"{value.dtype}, {value.layout}"
            raise ModelError(f"{context}{name} is {seen}; expected dense tensors of real numbers")


def check_digits(named: Iterable[tuple[str, Tensor]]) -> None:
    """A `ModelError` for parameters of less than 32 bits.

    Second derivatives and solves in float16 are off by 1e-3 to 1e-2, in bfloat16 by more, and what
    is compared to tell right from wrong is lost in that. Frozen ones only make features.
    """
    for name, value in named:
        if value.is_floating_point() and torch.finfo(value.dtype).bits < 32:
            digits = torch.finfo(value.dtype).eps
            raise ModelError(
                f"{name} is {value.dtype}, rounded to {digits:.0e} of itself: too coarse for "
                "second derivatives and solves; hand over the module in float32 or float64 "
                "(module.float(), module.double()), with inputs in the same precision"
            )


def check_memory(module: nn.Module, context: str = "") -> None:
    """A `ModelError` for a trainable parameter in whose memory another tensor lies as well.

    `decoder.weight.data = encoder.weight.data` makes no parameter of two: a step of a training
    moves both, where a derivative by the one leaves the other as it is. Parts of one memory that do
    not meet are tensors like others.
    """
    named = (*module.named_parameters(), *module.named_buffers())
    placed = sorted(
        ((*_span(value), name, value) for name, value in named if value.numel()),
        key=lambda each: each[:2],
    )
    for place, (_, stop, first, one) in enumerate(placed):
        for start, _, second, other in placed[place + 1 :]:
            if start >= stop:
                break
            if (one.requires_grad or other.requires_grad) and _meet(one, other):
                raise ModelError(
                    f"{context}{first} and {second} are two tensors in the same memory: a step of "
                    "a training moves both, and a derivative by one leaves the other as it is; "
                    "make them one parameter (decoder.weight = encoder.weight, without .data), or "
                    f"give {second} memory of its own (clone())"
                )


def _span(value: Tensor) -> tuple[int, int]:
    """The addresses of its first byte and behind its last."""
    steps = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return value.data_ptr(), value.data_ptr() + (steps + 1) * value.element_size()


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap share a number: columns of one table do not."""
    if one.data_ptr() == other.data_ptr() or (one.is_contiguous() and other.is_contiguous()):
        return True
    return bool(torch.isin(_addresses(one), _addresses(other)).any())


def _addresses(value: Tensor) -> Tensor:
    found = torch.tensor(value.data_ptr())
    for n, step in zip(value.shape, value.stride(), strict=True):
        found = found[..., None] + torch.arange(n) * step * value.element_size()
    return found
