"""A module's traced graph cut at its Linear layers."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.fx.node import map_arg

from influence_dag.errors import interrupt_behind
from influence_dag.study.torch_modes import lock_of_process


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a traced graph as a function of one tensor."""

    module: nn.Module
    source: fx.Node
    nodes: tuple[fx.Node, ...]
    result: fx.Node

    def __call__(self, value: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {self.source: value}
        for node in self.nodes:
            values[node] = self._run(node, values)
        return values[self.result]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.module)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    @property
    def is_closed(self) -> bool:
        """Whether it reads nothing but its source: no skip connection from further back."""
        known = {self.source, *self.nodes}
        reads = {node for user in self.nodes for node in user.all_input_nodes}
        return reads | {self.result} <= known

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters it reads."""
        for node in self.nodes:
            if node.op == "call_module":
                yield from self.module.get_submodule(str(node.target)).parameters()
            elif node.op == "get_attr":
                value = attrgetter(str(node.target))(self.module)
                yield from [value] if isinstance(value, nn.Parameter) else []


@dataclass(frozen=True, eq=False)
class Chain:
    """`segments[0] → linears[0] → segments[1] → … → linears[-1] → segments[-1]`."""

    linears: tuple[nn.Linear, ...]
    segments: tuple[Segment, ...]


# What torch's tracer changes for all of the process while it traces.
_CHANGED = (
    *((nn.Module, name) for name in ("__call__", "__getattr__")),
    *((_symbolic_trace, name) for name in ("CURRENT_PATCHER", "_is_fx_tracing_flag")),
)


_one_at_a_time = lock_of_process()


class _OfThisThread(fx.Tracer):
    """A tracer that what other threads call meanwhile is not part of."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _traced(root: nn.Module) -> fx.Graph:
    """Its graph; every module of the process is then called as before.

    An interrupt in the wrong moment would leave torch's tracer at work, or its changes where
    torch's compiler makes them again; so would two of them at once, in threads.
    """
    with _one_at_a_time:
        before = [
            (place, name, getattr(place, name)) for place, name in _CHANGED if hasattr(place, name)
        ]
        try:
            return _OfThisThread().trace(root)
        finally:
            for change in before:
                setattr(*change)


def linear_chain(module: nn.Module) -> Chain | None:
    """The module as a chain of Linear layers with closed segments between, or None."""
    root = nn.Sequential(module) if is_linear(module) else module
    try:
        graph = _traced(root)
    except Exception as error:  # whatever data-dependent Python code raises when it is traced
        if interrupt := interrupt_behind(error):
            raise interrupt from None
        return None
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder" and node.users]
    cuts = [node for node in nodes if node.op == "call_module" and _is_linear_call(root, node)]
    result = nodes[-1].args[0]
    if len(inputs) != 1 or not cuts or not isinstance(result, fx.Node):
        return None
    results = [cut.args[0] for cut in cuts] + [result]
    segments = _segments(root, nodes[:-1], [inputs[0], *cuts], results)
    if not all(segment.is_closed for segment in segments):
        return None
    linears = [root.get_submodule(str(cut.target)) for cut in cuts]
    return Chain(tuple(layer for layer in linears if isinstance(layer, nn.Linear)), segments)


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes what `nn.Linear` does."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _is_linear_call(root: nn.Module, node: fx.Node) -> bool:
    layer = root.get_submodule(str(node.target))
    return is_linear(layer) and len(node.args) == 1 and isinstance(node.args[0], fx.Node)


def _segments(
    root: nn.Module, nodes: list[fx.Node], sources: list[fx.Node], results: list[Any]
) -> tuple[Segment, ...]:
    positions = [nodes.index(source) for source in sources] + [len(nodes)]
    return tuple(
        Segment(root, source, tuple(nodes[start + 1 : stop]), result)
        for source, start, stop, result in zip(
            sources, positions, positions[1:], results, strict=False
        )
    )
