"""What parameters and buffers have to be: dense tensors of real numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor
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
