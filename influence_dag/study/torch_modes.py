"""Modes of torch that change derivatives or digits, and that whoever runs first has set for all.

Scripts and notebooks switch gradients off, compute under autocast, and round products of float32
to TF32 or bfloat16 (a GPU's convolutions do so by default); a model's module sets it when it is
imported. Numbers here are those of the settings alone. Torch is never imported first here: where
nobody has, it has no modes.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_OPERATIONS = (  # which torch rounds the operands of, each as it is told, from 2.9 on
    *(("mkldnn", operation) for operation in ("matmul", "conv", "rnn")),
    *(("cudnn", operation) for operation in ("conv", "rnn")),
    ("cuda", "matmul"),
)


@contextmanager
def plain_modes() -> Iterator[None]:
    """Inside, torch has derivatives, and computes in all digits that its tensors have.

    What was compiled runs as it was written: a compiler rounds in another order, compiles anew for
    each kind of derivative, and fails on code that it cannot follow under them.
    """
    if (torch := _imported()) is None:
        yield
        return
    with ExitStack() as modes:
        modes.enter_context(_of_all_threads.plain(torch))
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


def _imported() -> Any:
    """Torch where somebody has imported it; one that another thread imports is waited for."""
    return sys.modules.get("torch") and import_module("torch")


class _OfAllThreads:
    """Modes of the process: the first thread to come sets them, the last to leave sets them back.

    Were each to bring back what it found, one that left would bring it back for those still inside.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.RLock(), 0
        self._before, self._is_eager = ExitStack(), False

    @contextmanager
    def plain(self, torch: Any) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                rounding = _roundings(torch)
                self._before.callback(_restore, torch, rounding)
            self._inside += 1
        try:
            with self._lock:
                self._set(torch)
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._is_eager = False
                    self._before.close()

    def _set(self, torch: Any) -> None:
        """Once more, too, where code has set others since; dynamo may have been imported since."""
        if not self._is_eager and "torch._dynamo" in sys.modules:
            self._is_eager = True
            self._before.enter_context(torch.compiler.set_stance("force_eager"))
        keep_digits(torch)


_of_all_threads = _OfAllThreads()


@contextmanager
def kept_modes() -> Iterator[None]:
    """What is set inside ends here: people's code sets it when it is imported.

    But for the type of tensors that say none, on which that code may rely: see `OwnDefaults`.
    """
    before = _imported()
    rounding = before and _roundings(before)
    grads = before is None or before.is_grad_enabled()
    device = before and before.get_default_device()
    try:
        yield
    finally:
        if (torch := _imported()) is not None:
            torch.set_grad_enabled(grads)
            if torch.get_default_device() != device:
                # One that is named takes every call of torch through Python, the processor too.
                is_plain = device is None or device.type == "cpu"
                torch.set_default_device(None if is_plain else device)
            if rounding:
                _restore(torch, rounding)
            else:
                keep_digits(torch)


@contextmanager
def study_modes() -> Iterator[None]:
    """`plain_modes` for who asks a study once: what its code sets ends here as well."""
    with OwnDefaults().in_force(), plain_modes():
        yield


def default_dtype() -> Any:
    """The type of tensors that say none; None while there is no torch."""
    torch = _imported()
    return torch and torch.get_default_dtype()


def initial_dtype() -> Any:
    """The one with which torch begins."""
    torch = _imported()
    return torch and torch.float32


def set_default_dtype(dtype: Any) -> None:
    """Let tensors that say no type have this one, None for the one with which torch begins."""
    if (torch := _imported()) is not None:
        torch.set_default_dtype(dtype or torch.float32)


@dataclass(eq=False)
class OwnDefaults:
    """The type of tensors that say none, while one study works: float32, or what its code has set.

    `torch.set_default_dtype` is the whole process's: without an end, what one study's module sets
    when it is imported would be in the first weights and constants of all that come after it.
    """

    dtype: Any = None
    _entered: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside; what is set there is in force again the next time, and afterwards as before."""
        if self._entered:
            yield
            return
        before, self._entered = default_dtype(), True
        set_default_dtype(self.dtype)
        try:
            yield
        finally:
            self.dtype, self._entered = default_dtype(), False
            set_default_dtype(before)


@dataclass(frozen=True)
class _Roundings:
    """What operations on float32 round their operands to: in all, and one by one."""

    matmul: str | None
    cudnn: bool | None
    operations: dict[tuple[str, str], str]


def _roundings(torch: Any) -> _Roundings:
    operations = {each: _operation(torch, *each).fp32_precision for each in _known(torch)}
    try:
        return _Roundings(
            torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, operations
        )
    except RuntimeError:  # some were set one by one, and torch has no word for all
        return _Roundings(None, None, operations)


def _restore(torch: Any, roundings: _Roundings) -> None:
    if roundings.matmul is not None:
        torch.set_float32_matmul_precision(roundings.matmul)
        torch.backends.cudnn.allow_tf32 = roundings.cudnn
    for each, precision in roundings.operations.items():
        _operation(torch, *each).fp32_precision = precision


def keep_digits(torch: Any) -> None:
    """Round nothing. Both of torch's ways to say so, which are told to agree."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for each in _known(torch):
        _operation(torch, *each).fp32_precision = "ieee"


def _known(torch: Any) -> Sequence[tuple[str, str]]:
    return _OPERATIONS if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ()


def _operation(torch: Any, backend: str, operation: str) -> Any:
    return getattr(getattr(torch.backends, backend), operation)
