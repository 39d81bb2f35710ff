"""Which of the values that a module returns is its prediction, that a loss is a function of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.losses import LOSSES, LossFunction, ReducedLoss, ignored_class
from influence_dag.structures import described, named_parts

PREDICTION = "logits"  # as frameworks call it


def chosen_output(outputs: Any, name: str | None, loss: LossFunction) -> Any:
    """The prediction among a module's outputs.

    By `name` (or position) where one is given. Without, a loss that is known to take one tensor
    gets the `logits`, or the only tensor of floating-point numbers; a loss of one's own gets all
    that the module returns. Logits of tokens in the output class of a framework, (rows, positions,
    classes), have the classes second, where torch's cross-entropy looks for them.

    >>> import torch
    >>> chosen_output({"logits": torch.zeros(2), "hidden": torch.ones(2)}, None, LOSSES["mse"])
    tensor([0., 0.])
    """
    if name is None and (isinstance(outputs, Tensor) or not _takes_one_tensor(loss)):
        return outputs
    parts = named_parts(outputs)
    found = parts.get(name) if name is not None else _prediction(parts)
    if not isinstance(found, Tensor):
        if name is None:
            return outputs  # refused with its shapes where the loss is checked
        raise ModelError(
            f"model.output: {name!r} is no tensor among what the module returns, "
            f"{described(outputs)}" + (f"; known are {', '.join(parts)}" if parts else "")
        )
    tokens = found.ndim == 3 and _is_of_framework(outputs) and ignored_class(loss) is not None
    return found.movedim(-1, 1) if tokens else found


def _takes_one_tensor(loss: LossFunction) -> bool:
    of_torch = isinstance(loss, ReducedLoss) and loss.of_torch is not None
    return of_torch or any(loss is known for known in LOSSES.values())


def _prediction(parts: Mapping[str, Any]) -> Any:
    if PREDICTION in parts:
        return parts[PREDICTION]
    tensors = [v for v in parts.values() if isinstance(v, Tensor) and v.is_floating_point()]
    return tensors[0] if len(tensors) == 1 else None


def _is_of_framework(outputs: Any) -> bool:
    """Whether it is an output class as `transformers` has them, known by its ancestors' name."""
    return any(kind.__name__ == "ModelOutput" for kind in type(outputs).__mro__)


def predicts_next(outputs: Any) -> bool:
    """Whether they are of a language model of a framework: logits of the token that comes next."""
    return _is_of_framework(outputs) and type(outputs).__name__.startswith("CausalLM")
