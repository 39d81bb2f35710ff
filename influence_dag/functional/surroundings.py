"""What surrounds a call and is no part of what it asks: modes of torch that change derivatives."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from influence_dag.objective.objective import flushed_denormals

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_plain_surroundings(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """The function, run outside `inference_mode`, `no_grad` and `autocast`, whoever calls it.

    Code that evaluates a model is often under all of them. The first two have no derivatives, and
    autocast computes in fewer digits than the model's own, which second derivatives do not survive.
    Inside, numbers below the smallest normal one are zero.
    """

    @wraps(function)
    def plain(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            modes.enter_context(flushed_denormals())
            return function(*args, **kwargs)

    return plain
