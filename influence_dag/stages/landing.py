"""Blocks on their way from the device that computed them to the host that writes them.

A kernel may leave an array where it computed it. On the processor it is taken as it stands, without
a copy. From a GPU it is copied into pinned memory on a stream of its own, and nobody waits for that
before the next block has been handed to the device: one is computed while the one before it is
copied, looked at and written.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar, Union

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Arrays = Mapping[str, np.ndarray]
Computed = Mapping[str, Union[np.ndarray, "Tensor"]]
Item = TypeVar("Item")
IN_FLIGHT = 2  # blocks that are being computed or copied, those taken not counted


class Copies(Protocol):
    """How tensors of a device come to the host."""

    def begin(self, tensors: "Mapping[str, Tensor]", /) -> Callable[[], Arrays]:
        """Begin to copy, without waiting; what is called waits for the end, and gives the copies.

        The tensors are not written to meanwhile, and their memory is not given to others.
        """
        ...


class PinnedCopies:
    """Copies of CUDA tensors, beside what is computed after them.

    The pinned memory is torch's, which keeps it, and gives it out again when whoever had the array
    has let go of it.
    """

    def begin(self, tensors: "Mapping[str, Tensor]", /) -> Callable[[], Arrays]:
        import torch

        device = next(iter(tensors.values())).device
        aside, copied = _stream(device), torch.cuda.Event()
        aside.wait_stream(torch.cuda.current_stream(device))
        held, there = [*tensors.values()], {}
        with torch.cuda.stream(aside):
            for name, tensor in tensors.items():
                there[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                there[name].copy_(tensor.detach(), non_blocking=True)
            copied.record(aside)

        def landed() -> Arrays:
            copied.synchronize()
            held.clear()
            return {name: tensor.numpy() for name, tensor in there.items()}

        return landed


@cache
def _stream(device: "torch.device") -> "torch.cuda.Stream":
    """The one for copies, so that they come in the order in which they were asked for."""
    import torch

    return torch.cuda.Stream(device)


def landed(
    blocks: Iterable[tuple[Item, Computed]], copies: Copies | None = None
) -> Generator[tuple[Item, Arrays], None, None]:
    """Each block's arrays, in order: those of the processor at once, others one block later.

    What came before an error of `blocks` is given before it is raised.
    """
    copies = copies or PinnedCopies()
    under_way: deque[tuple[Item, Callable[[], Arrays]]] = deque()

    def arrived(but: int) -> Generator[tuple[Item, Arrays], None, None]:
        while len(under_way) > but:
            item, wait = under_way.popleft()
            try:
                arrays = wait()
            except Exception as error:  # of what was computed: a device tells it when it is asked
                error.add_note(f"while computing {item}")
                raise
            yield item, arrays
            del arrays  # or it would exist for as long as the next one is computed

    source = iter(blocks)
    while True:
        try:
            block = next(source, None)
        except Exception:
            yield from arrived(0)
            raise
        if block is None:
            break
        item, computed = block
        at_once = not _away(computed)
        under_way.append((item, _begun(computed, copies)))
        del block, computed  # they are as large as a block
        yield from arrived(0 if at_once else IN_FLIGHT - 1)
    yield from arrived(0)


def _begun(computed: Computed, copies: Copies) -> Callable[[], Arrays]:
    """What gives a block's arrays, copies of them begun."""
    away = _away(computed)
    here = {
        name: each if isinstance(each, np.ndarray) else each.detach().numpy()
        for name, each in computed.items()
        if name not in away
    }
    if not away:
        return lambda: here
    wait = copies.begin(away)
    return lambda: {**here, **wait()}


def _away(computed: Computed) -> "dict[str, Tensor]":
    """What is on a device."""
    tensors = {name: each for name, each in computed.items() if not isinstance(each, np.ndarray)}
    return {name: each for name, each in tensors.items() if each.device.type != "cpu"}
