"""Memory of results that are larger than a cache."""

import math
from collections.abc import Sequence
from weakref import finalize

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
    return Recycled().fresh(shape, like)


class Recycled:
    """`fresh`, in the memory of earlier tensors that whoever had them has let go of.

    Blocks of a stage are made and written one after the other: what goes back to the system comes
    again as pages to be zeroed. No more is kept than was in use at once.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def fresh(self, shape: Sequence[int], like: Tensor) -> Tensor:
        size = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or size < _HUGE:
            return like.new_empty(shape)
        memory = torch.from_numpy(self._lent(size + _LINE))
        start = -memory.data_ptr() % _LINE
        return memory[start : start + size].view(like.dtype).view(shape)

    def _lent(self, size: int) -> np.ndarray:
        """Memory that comes back when the array and all that share it are gone, in any thread."""
        try:
            held = self._free.pop()
        except IndexError:
            held = None
        if held is None or held.size < size:
            held = np.empty(size, np.uint8)
        lent = held[:]
        finalize(lent, self._free.append, held).atexit = False
        return lent
