"""Random numbers that user code draws start from the same place in every process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, numpy and Python start from `seed` inside.

    Afterwards they go on as if nothing had been drawn.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        seed_all(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def seed_all(seed: int) -> None:
    """Random numbers of torch, numpy and Python start from `seed` from now on."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # for devices that are not there torch would note the stack of this call, three times
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
