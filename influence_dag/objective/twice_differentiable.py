"""Which of torch's kernels a module may use, so that its second derivatives exist and are right."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.backends import cuda, mha
from torch.overrides import TorchFunctionMode

from influence_dag.errors import ModelError
from influence_dag.study.torch_modes import lock_of_process

NOT_FOLLOWED = (RuntimeError, NotImplementedError)  # what torch raises for what it cannot do

_ATTENDS_BY, _PLAIN = "_attn_implementation", ("eager", "sdpa")
_FUSED = vars(torch)["_weight_norm"]
_CELLS = {
    vars(torch)["lstm"]: ("lstm_impl", "lstm_data_impl"),
    vars(torch)["gru"]: ("gru_impl", "gru_impl_data"),
}
_ATTENTION = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(eq=False)
class TwiceDifferentiable:
    """A context in which a module is run.

    Fused attention and cuDNN's recurrent kernels have no second derivative. The fast path that
    encoders take where no gradient is asked for puts out zeros at padded positions: another loss
    than the one that is differentiated. The fused kernel of weight normalisation has a second
    derivative that is wrong: it is not symmetric. Models of `transformers` are told by their config
    to keep no cache of keys and values, and to attend by plain products.
    """

    attends: bool
    recurrent: bool
    normalises_weights: bool
    configs: tuple[Any, ...] = ()
    _entered: list[ExitStack] = field(default_factory=list)

    @classmethod
    def of(cls, module: nn.Module) -> "TwiceDifferentiable":
        layers = list(module.modules())
        return cls(
            any(isinstance(layer, _ATTENTION) for layer in layers),
            any(isinstance(layer, nn.RNNBase) for layer in layers),
            any(map(_normalises_weights, layers)),
            _configs(layers),
        )

    @property
    def said(self) -> str:
        """What is run in another form than the module's own, in words; empty where nothing is."""
        words = []
        kinds = {str(getattr(config, _ATTENDS_BY, None) or _PLAIN[0]) for config in self.configs}
        kinds -= {_PLAIN[0]}
        if self.attends or kinds:
            fused = ", ".join(sorted(kinds)) or "the fused kernel"
            words.append(f"attention by plain products ({fused} has no second derivative)")
        if any(getattr(config, "use_cache", False) for config in self.configs):
            words.append("no cache of keys and values")
        if self.recurrent:
            words.append("recurrent layers without cuDNN")
        if self.normalises_weights:
            words.append("weight normalisation unfused")
        return "; ".join(words)

    def __enter__(self) -> None:
        with ExitStack() as kernels:
            _PLAIN_ATTENTION.hold(kernels)
            for config in self.configs:
                _of_config(config).hold(kernels)
            if self.attends:
                _NO_FAST_PATH.hold(kernels)
            if self.recurrent:
                _NO_CUDNN.hold(kernels)
                kernels.enter_context(_UnfusedCells())
            if self.normalises_weights:
                kernels.enter_context(_UnfusedWeightNorm())
            self._entered.append(kernels.pop_all())

    def __exit__(self, *raised: Any) -> None:
        self._entered.pop().close()


_CHANGING = lock_of_process()


class _OfTheProcess:
    """Flags that are all threads': who is inside first sets them, who leaves last puts them back.

    In a tenth of the time of `sdpa_kernel(SDPBackend.MATH)`: each call of a module pays it.
    """

    def __init__(self, *flags: tuple[Callable[[], Any], Callable[[Any], Any], Any]):
        self._flags, self._inside = flags, 0
        self._before: list[tuple[Callable[[Any], Any], Any]] = []

    def hold(self, kernels: ExitStack) -> None:
        """Until the stack is closed."""
        held: list[bool] = []
        kernels.callback(self._leave, held)  # first: an interrupt may follow
        with _CHANGING:
            self._inside += 1
            held.append(True)
            if self._inside > 1:
                return
            for read, write, wanted in self._flags:
                if (before := read()) != wanted:
                    self._before.append((write, before))
                    write(wanted)

    def _leave(self, held: list[bool]) -> None:
        if not held:
            return
        with _CHANGING:
            self._inside -= 1
            while not self._inside and self._before:
                write, value = self._before[-1]
                write(value)
                self._before.pop()


_PLAIN_ATTENTION = _OfTheProcess(
    (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, False),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, False),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False),
)
_NO_FAST_PATH = _OfTheProcess((mha.get_fastpath_enabled, mha.set_fastpath_enabled, False))
# Not by `torch.backends.cudnn.flags`, which sets all others as well, and of other threads' back.
_NO_CUDNN = _OfTheProcess((torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, False))
_BY_CONFIG: WeakValueDictionary[int, _OfTheProcess] = WeakValueDictionary()  # of those held


def _configs(layers: list[nn.Module]) -> tuple[Any, ...]:
    """The layers' settings as frameworks keep them, each once."""
    found = {id(layer.config): layer.config for layer in layers if hasattr(layer, "config")}
    names = ("use_cache", _ATTENDS_BY)
    return tuple(config for config in found.values() if any(hasattr(config, n) for n in names))


def _of_config(config: Any) -> _OfTheProcess:
    """What a config's layers are told: of it, and of all who call them, there is one."""
    with _CHANGING:
        if (held := _BY_CONFIG.get(id(config))) is not None:
            return held
        wanted: dict[str, Any] = {"use_cache": False} if hasattr(config, "use_cache") else {}
        if getattr(config, _ATTENDS_BY, None) not in (None, *_PLAIN):
            wanted[_ATTENDS_BY] = _PLAIN[0]
        flags = (
            (partial(getattr, config, k), partial(setattr, config, k), wanted[k]) for k in wanted
        )
        held = _BY_CONFIG[id(config)] = _OfTheProcess(*flags)
        return held


def _normalises_weights(layer: nn.Module) -> bool:
    """Whether the layer is a weight normalisation, or has one in its old form, as a hook."""
    kinds = (type(layer), *(type(hook) for hook in layer._forward_pre_hooks.values()))
    return any(kind.__name__ in ("_WeightNorm", "WeightNorm") for kind in kinds)


class _UnfusedWeightNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _FUSED:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    r"""$g v / \lVert v \rVert$, the norm over all axes but `dim` (-1: over all)."""
    others = [axis for axis in range(v.ndim) if axis != dim % v.ndim or dim == -1]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


class _UnfusedCells(TorchFunctionMode):
    """Layers of a GPU by plain operations: its fused cells are called row by row inside `vmap`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CELLS and args[0].is_cuda and not kwargs:
            from torch._decomp import decompositions

            # Packed sequences come with the sizes of their batches, one axis, before the state.
            packed = isinstance(args[1], Tensor) and args[1].ndim == 1
            return getattr(decompositions, _CELLS[func][packed], func)(*args)
        return func(*args, **(kwargs or {}))


def no_derivative(which: str, objective: Any, error: Exception) -> ModelError:
    """The error for a model of which torch has no first or second derivative."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{type(objective.module).__name__} or its loss has no {which} derivative: {said}; replace "
        "the part that torch cannot differentiate (an autograd.Function without setup_context, an "
        "EmbeddingBag or a sparse Embedding, a loss with numpy inside) by plain operations, or "
        "freeze the parameters behind it"
    )


def plain_gradient(
    values: Tensor, at: Tensor, weights: Tensor | None = None, *, create_graph: bool = False
) -> Tensor:
    """The gradient of `weights · values` by autograd as it stands, zero where nothing depends.

    The graph is kept. What torch.func cannot follow (packed sequences, buffers that count calls,
    custom functions of the older kind) is differentiated so, a vector at a time.
    """
    if not values.requires_grad:
        return torch.zeros_like(at)
    if weights is not None:  # as one number: torch imports an algebra system to compare shapes
        with torch.enable_grad():
            values = (weights * values).sum()
    return torch.autograd.grad(
        values, at, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )[0]
