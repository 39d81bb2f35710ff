"""Modes of torch that change derivatives or digits, and that whoever runs first has set for all.

Scripts and notebooks switch gradients off, compute under autocast, and round products of float32
to TF32 or bfloat16 (a GPU's convolutions do so by default); a model's module sets it when it is
imported. Numbers here are those of the settings alone. Torch is never imported first here: where
nobody has, it has no modes.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from influence_dag.errors import StudyError

_OPERATIONS = (  # which torch rounds the operands of, each as it is told, from 2.9 on
    *(("mkldnn", operation) for operation in ("matmul", "conv", "rnn")),
    *(("cudnn", operation) for operation in ("conv", "rnn")),
    ("cuda", "matmul"),
)


def lock_of_process() -> Any:
    """A lock that is made once in a process, and that a forked one finds free.

    A thread that held it is not there, and would hold it for ever.
    """
    lock: Any = threading.RLock()

    def forked() -> None:
        if not lock._is_owned():  # by the thread that was forked, which goes on
            lock._at_fork_reinit()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forked)
    return lock


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
        self._lock, self._inside = lock_of_process(), 0
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

    But for the type of tensors that say none, on which that code may rely: see `study_modes`.
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
                _set_default_device(torch, device)
            if rounding:
                _restore(torch, rounding)
            else:
                keep_digits(torch)


def _set_default_device(torch: Any, device: Any) -> None:
    """Back to torch's own by none at all: one that is named is looked at in every call of torch."""
    torch.set_default_device(None if device == torch.device("cpu") else device)


@contextmanager
def study_modes(dtype: Any = None) -> Iterator[None]:
    """`plain_modes` for who asks a study; what its code sets ends here as well.

    Tensors that say no type have `dtype`, None for the one with which torch begins.
    """
    with _own_default(dtype), plain_modes():
        yield


def default_dtype() -> Any:
    """The type of tensors that say none; None while there is no torch."""
    torch = _imported()
    return torch and torch.get_default_dtype()


def initial_dtype() -> Any:
    """The one with which torch begins."""
    torch = _imported()
    return torch and torch.float32


_computing: list[int] = []  # the threads that are in `study_modes`, each as often as it is
_asked = lock_of_process()
_outside: Any = None  # the default type where no thread is


@contextmanager
def _own_default(dtype: Any) -> Iterator[None]:
    """Inside, tensors that say no type have this one, and afterwards that of before.

    `torch.set_default_dtype` is the whole process's: without an end, what one study's module sets
    when it is imported would be in the first weights and constants of all that come after it.
    """
    global _outside
    me = threading.get_ident()
    with _asked:
        before = default_dtype()
        if not _computing:
            _outside = before
        set_default_dtype(dtype)
        _computing.append(me)
    try:
        yield
    finally:
        with _asked:
            _computing.remove(me)
            if me in _computing or not _computing:
                set_default_dtype(before if _computing else _outside)


def set_default_dtype(dtype: Any, *, before: Any = None) -> None:
    """Let tensors that say no type have this one, None for the one with which torch begins.

    It is that of all threads. Where another one computes under the type that there was `before`
    (the one that is found now, unless code has just set this one), this raises `StudyError`.
    """
    if (torch := _imported()) is None:
        return
    with _asked:
        dtype, before = dtype or torch.float32, before or torch.get_default_dtype()
        if dtype != before and any(each != threading.get_ident() for each in _computing):
            torch.set_default_dtype(before)
            raise StudyError(
                f"tensors that say no type would be {dtype} here, by torch.set_default_dtype, and "
                f"are {before} in a study that another thread computes; torch has one such type "
                "for all threads: compute one study after the other, or let code say dtype=…"
            )
        torch.set_default_dtype(dtype)


def _forked() -> None:
    """Of the threads there is this one alone: the type of others is in nobody's way."""
    _computing[:] = [each for each in _computing if each == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
