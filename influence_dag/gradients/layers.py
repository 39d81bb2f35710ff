"""The layers of a network whose gradients may be sums of products, and their parameters' names."""

from collections.abc import Iterator

from torch import nn

from influence_dag.gradients.layouts import joined

_LARGEST_DENSE_TABLE = 2**11  # numbers: their covariance takes seconds to diagonalise
_MOST_INDICATORS = 2**12  # rows of a table: of as many numbers is the input at a position


class InProjection(nn.Module):
    """The Linear layer that queries, keys and values of an `nn.MultiheadAttention` are made by.

    Its parameters are the attention's own, `in_proj_weight` and `in_proj_bias`.
    """


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside by name, and after an attention's the projection that stands in it."""
    for name, layer in module.named_modules():
        yield name, layer
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            yield joined(name, "in_proj"), InProjection()


def layer_of(module: nn.Module, name: str) -> nn.Module:
    """The layer of a name that `layers_of` gives."""
    owner, _, last = name.rpartition(".")
    if last == "in_proj" and isinstance(module.get_submodule(owner), nn.MultiheadAttention):
        return InProjection()
    return module.get_submodule(name)


def parameter_name(layer: nn.Module, name: str, role: str) -> str:
    """The name in the network of a layer's `weight` or `bias`."""
    return f"{name}_{role}" if isinstance(layer, InProjection) else joined(name, role)


def is_capturable(layer: nn.Module) -> bool:
    """Whether the layer's gradient may be a sum of products of its inputs and output gradients."""
    if type(layer).forward is nn.Linear.forward or isinstance(layer, InProjection):
        return True
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return is_transposed(layer)


def is_large_table(layer: nn.Module) -> bool:
    """Whether it is an embedding that is kept as a Linear layer of indicators of its rows.

    Small ones are cheaper, and exact, as they are; of large ones their covariance would be.
    """
    if not isinstance(layer, nn.Embedding) or layer.max_norm is not None:
        return False
    plain = not layer.scale_grad_by_freq and not layer.sparse
    rows, numbers = layer.num_embeddings, layer.weight.numel()
    return plain and numbers > _LARGEST_DENSE_TABLE and rows <= _MOST_INDICATORS


def is_transposed(layer: nn.Module) -> bool:
    """Whether its weight is (inputs, outputs): GPT-2's `Conv1D`, or a large table of embeddings."""
    if is_large_table(layer):
        return True
    weight = getattr(layer, "weight", None)
    named = type(layer).__name__ == "Conv1D" and not isinstance(layer, nn.Linear)
    return named and weight is not None and weight.ndim == 2
