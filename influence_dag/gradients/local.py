r"""Per-sample gradients of small layers from what one call takes and gets back.

A norm's scale, an embedding's table, an adapter's matrices, any layer without trained layers
inside: of row i the gradient is that
of $\langle f(x_i, \phi), g_i \rangle$ in its parameters φ, with its input $x_i$ and its output's
gradient $g_i$ caught in the network's own backward pass. That is a pass through one layer a row,
not through the network. Whether it is the gradient (one call, rows that stay rows) is seen
on every batch by the caller's random check.
"""

from collections.abc import Mapping

from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from influence_dag.gradients.capture import NotCaptured
from influence_dag.gradients.layers import is_capturable


def is_local(name: str, layer: nn.Module) -> bool:
    """Whether a layer's gradients may be taken so: all trainable parameters in it are its own."""
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
    return bool(name and own) and len(own) == len(trained) and not is_capturable(layer)


def local_gradients(
    name: str,
    layer: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Num[Tensor, "n ..."],
    g: Float[Tensor, "c n ..."],
) -> dict[str, Float[Tensor, "c n size"]]:
    """For each output gradient of each row, those of `parameters`, which the layer's names name.

    Raises `NotCaptured` for a layer that is not called with a row alone.
    """

    def value(values: dict[str, Tensor], row: Tensor, gradient: Tensor) -> Tensor:
        output = functional_call(layer, values, (row.unsqueeze(0),))
        return (output * gradient.unsqueeze(0)).sum()

    of_rows = vmap(grad(value), in_dims=(None, 0, 0))
    try:
        found = vmap(of_rows, in_dims=(None, None, 0))(dict(parameters), x, g)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotCaptured({name}) from error
    # A parameter may be one number, of no axis.
    return {key: values.unsqueeze(-1).flatten(2) for key, values in found.items()}
