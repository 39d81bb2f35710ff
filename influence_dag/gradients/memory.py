"""Memory of results that are larger than a cache."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_HUGE = 2**22  # bytes, from which on numpy asks the system for pages of 2 MiB
_LINE = 64  # bytes, at which torch's own memory begins


def fresh(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of this shape, of the other's type and device, whose numbers are not set.

    The system zeroes pages of 4 KiB one by one when they are first written to, which takes longer
    than products of matrices that are written there. On a processor large results are numpy's
    memory, which comes in huge pages where the system has them: a third of the time to be filled.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < _HUGE:
        return like.new_empty(shape)
    memory = torch.from_numpy(np.empty(size + _LINE, np.uint8))
    start = -memory.data_ptr() % _LINE
    return memory[start : start + size].view(like.dtype).view(shape)
