"""How outputs, targets and inputs are handed over: tensors, tuples, dicts, objects."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

Pair = namedtuple("Pair", ["logits", "cache"])


class ModelOutput(OrderedDict):
    """A dict whose entries are attributes too, as in a well-known library."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


class Packing(NamedTuple):
    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any], Tensor]


OUTPUTS = {
    "tensor": Packing(lambda f: f, lambda o: o),
    "tuple": Packing(lambda f: (f, f.detach().mean()[None].expand(len(f))), lambda o: o[0]),
    "tuple with None": Packing(lambda f: (f, None), lambda o: o[0]),
    "named tuple": Packing(lambda f: Pair(f, f * 2), lambda o: o.logits),
    "list": Packing(lambda f: [f], lambda o: o[0]),
    "dict": Packing(lambda f: {"logits": f}, lambda o: o["logits"]),
    "dict with None": Packing(lambda f: {"loss": None, "logits": f}, lambda o: o["logits"]),
    "nested": Packing(lambda f: {"heads": {"logits": (f,)}}, lambda o: o["heads"]["logits"][0]),
    "model output": Packing(lambda f: ModelOutput(logits=f), lambda o: o.logits),
    "object": Packing(lambda f: Answer(f), lambda o: o.logits),
    "with a table": Packing(
        lambda f: {"logits": f, "table": f.new_ones(3)}, lambda o: o["logits"] * o["table"].sum()
    ),
    "squeezed": Packing(lambda f: f.squeeze(), lambda o: o),
}

TARGETS = {
    "tensor": Packing(lambda y: y, lambda t: t),
    "dict": Packing(lambda y: {"label": y}, lambda t: t["label"]),
    "dict of two": Packing(
        lambda y: {"label": y, "unused": y.float().reshape(len(y), -1)}, lambda t: t["label"]
    ),
    "tuple": Packing(lambda y: (y.float().reshape(len(y), -1), y), lambda t: t[1]),
}


class Network(nn.Module):
    """Inputs by position or by name, a body, a head, packed outputs."""

    def __init__(self, body, head, pack):
        super().__init__()
        self.body, self.head, self.pack = body, head, pack

    def forward(self, *args, **kwargs):
        if isinstance(self.body, nn.Sequential):
            args, kwargs = (*args, *kwargs.values()), {}
        return self.pack(self.head(self.body(*args, **kwargs)))


class Transposed(nn.Module):
    """(rows, positions, classes) as the losses take them: (rows, classes, positions)."""

    def forward(self, x):
        return x.transpose(1, 2)


def carried(inputs, form):
    """The named inputs as one tensor, a tuple or a dict."""
    if form == "tensor":
        (value,) = inputs.values()
        return value
    return tuple(inputs.values()) if form == "tuple" else dict(inputs)
