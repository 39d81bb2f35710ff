r"""`nn.MultiheadAttention` as the products that it consists of, for the two Linear layers in it.

Torch runs it as one function that its submodule's hooks do not see. Here its projections are calls
of layers like others; whoever uses this compares the network's values with those by torch.
"""

import inspect
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from influence_dag.gradients.layouts import joined

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


class RecordedAttention(TorchFunctionMode):
    """Self-attention in which the calls of the named `in_proj` and `out_proj` are recorded."""

    def __init__(
        self,
        module: nn.Module,
        names: set[str],
        calls: list[tuple[str, Tensor, Tensor]],
        rebuilt: set[str],
    ):
        super().__init__()
        self.calls, self.rebuilt = calls, rebuilt
        self.layers = {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, nn.MultiheadAttention)
            and {joined(name, "in_proj"), joined(name, "out_proj")} & names
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            name = self._owner(given.arguments)
            if name is not None and _is_plain(given.arguments):
                return self._attend(name, given.arguments)
        return func(*args, **(kwargs or {}))

    def _owner(self, given: dict[str, Any]) -> str | None:
        weight = given["in_proj_weight"]
        return next((n for n, m in self.layers.items() if m.in_proj_weight is weight), None)

    def _attend(self, name: str, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        x, heads = given["query"].transpose(0, 1), given["num_heads"]
        packed = self._project(
            joined(name, "in_proj"), x, given["in_proj_weight"], given["in_proj_bias"]
        )
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, 2))
        scores = q @ k.mT / q.shape[-1] ** 0.5 + _mask(given, q)
        shares = scores.softmax(-1)
        mixed = (shares @ v).transpose(1, 2).flatten(2)
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        out = self._project(joined(name, "out_proj"), mixed, weight, bias).transpose(0, 1)
        if not given["need_weights"]:
            return out, None
        return out, shares.mean(1) if given["average_attn_weights"] else shares

    def _project(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = F.linear(x, weight, bias)
        self.calls.append((name, x, output))
        self.rebuilt.add(name)
        return output


def _is_plain(given: dict[str, Any]) -> bool:
    """Self-attention of batches by packed weights, without added keys and without dropout."""
    same = given["query"] is given["key"] and given["key"] is given["value"]
    added = given["bias_k"] is not None or given["bias_v"] is not None or given["add_zero_attn"]
    static = given["static_k"] is not None or given["static_v"] is not None
    drops = given["training"] and given["dropout_p"] > 0
    packed = not given["use_separate_proj_weight"]
    return same and packed and not added and not static and not drops and given["query"].ndim == 3


def _mask(given: dict[str, Any], q: Float[Tensor, "n heads t d"]) -> Tensor:
    """What is added to the scores, to be broadcast to (n, heads, t, t).

    The module has made numbers of masks of truth values by then.
    """
    n, heads = q.shape[:2]
    total = q.new_zeros(())
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    if mask is not None:
        mask = mask.unflatten(0, (n, heads)) if mask.ndim == 3 else mask
        total = total + mask
    if padding is not None:
        total = total + padding[:, None, None, :]
    return total
