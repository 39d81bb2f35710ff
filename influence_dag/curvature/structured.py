r"""Second derivatives of layered networks as sums over samples of Kronecker products.

For one sample let $S[m, k]$ be the second derivative of the loss with respect to shifts of the
pre-activations $z_m$ and $z_k$, and $\tilde a_k$ a layer's input with a 1 for the bias. Then, for
$m \ge k$, and the sum being over samples,

$$ H[m, k]_{(o,i),(p,j)} = \sum \big( S[m, k]_{op} \, \tilde a_{m,i}
   + [m > k] \, g_{m,o} \, \partial a_{m,i} / \partial z_{k,p} \big) \, \tilde a_{k,j} $$

Each term is one matrix product per pair of layers, the sum over samples inside. Gauss-Newton
keeps of S what comes from the curvature of the loss alone, and drops the second term.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.layered import LayeredNetwork, LinearLayer, NetworkPass
from influence_dag.objective.objective import Rows

_NUMBERS = 2**23  # of the largest temporary, samples × pairs of inputs
_BATCHES = 3  # of autograd's size at once: adding up sums takes a third as long as making them
_Pair = tuple[int, int]


def second_derivative_sum(
    network: LayeredNetwork, rows: Rows, *, gauss_newton: bool = False, batch_size: int = 512
) -> Float[Tensor, "p p"]:
    r"""$\sum_i \nabla^2 L(z_i)$, or the Gauss-Newton sum; exactly symmetric.

    Summed in float64 and written in `network.sums`.

    About `n p² / 2` multiply-adds: only the lower triangle of blocks is formed, and of those
    on the diagonal only unordered pairs of outputs and of inputs, another half.
    """
    widest = max(max(layer.weight.shape) for layer in network.layers) + 1
    sums: dict[_Pair, list[Tensor]] = {}
    for batch in rows.batches(max(1, min(_BATCHES * batch_size, _NUMBERS // widest**2))):
        for pair, terms in _terms(
            network, network.run(batch, gauss_newton=gauss_newton), gauss_newton
        ):
            if pair in sums:
                held = zip(sums[pair], terms, strict=True)
                terms = [total.double().add_(term) for total, term in held]
            sums[pair] = terms
    device = network.layers[0].weight.device
    matrix = torch.zeros(network.size, network.size, dtype=network.sums, device=device)
    for (m, k), exact in sums.items():
        terms = [term.to(network.sums) for term in exact]
        if m == k:
            _write_diagonal(matrix, network.layers[m], *terms)
        else:
            _write_off_diagonal(matrix, network.layers[m], network.layers[k], m - k == 1, *terms)
    return matrix


def _terms(
    network: LayeredNetwork, state: NetworkPass, gauss_newton: bool
) -> Iterator[tuple[_Pair, list[Tensor]]]:
    """The sums over one batch for every pair of trainable layers, last layer first."""
    features = [_features(*pair) for pair in zip(network.layers, state.inputs, strict=True)]
    jacobians = _jacobians(network, state)
    curvature = state.output_matrix()
    for m in range(len(network.layers) - 1, -1, -1):
        if network.layers[m].is_trainable:
            yield (m, m), [_diagonal_term(curvature, features[m])]
        forward = [_forward(network, state, jacobians, m, k) for k in range(m)]
        shifts = [curvature @ each for each in forward]
        for k in range(m):
            if network.layers[m].is_trainable and network.layers[k].is_trainable:
                terms = [_outer(shifts[k]).T @ _outer(features[m], features[k])]
                if not gauss_newton and network.layers[m].weight_place is not None:
                    terms.append(_input_term(state, features[k], m, k, jacobians.get((m, k))))
                yield (m, k), terms
        if m:
            curvature = forward[m - 1].mT @ shifts[m - 1]
            if not gauss_newton:
                curvature.diagonal(dim1=1, dim2=2).add_(state.bends[m - 1])


def _features(layer: LinearLayer, a: Float[Tensor, "n d_in"]) -> Float[Tensor, "n i"]:
    """What multiplies the layer's trainable parameters: its inputs, and 1 for the bias."""
    weight = a if layer.weight_place is not None else a[:, :0]
    bias = a.new_ones(len(a), 1 if layer.bias_place is not None else 0)
    return torch.cat([weight, bias], 1)


def _jacobians(network: LayeredNetwork, state: NetworkPass) -> dict[_Pair, Tensor]:
    r"""$\partial a_m / \partial z_k$, a_m being the inputs of layer m, for k < m - 1."""
    jacobians: dict[_Pair, Tensor] = {}
    for m in range(2, len(network.layers)):
        for k in range(m - 1):
            forward = _forward(network, state, jacobians, m - 1, k)
            jacobians[m, k] = state.slopes[m - 1].unsqueeze(2) * forward
    return jacobians


def _forward(
    network: LayeredNetwork, state: NetworkPass, jacobians: dict[_Pair, Tensor], m: int, k: int
) -> Float[Tensor, "n o p"]:
    r"""$\partial z_m / \partial z_k$: of the layer before, its weights times the slopes."""
    weight = network.layers[m].weight
    if m - k == 1:
        return weight * state.slopes[k].unsqueeze(1)
    return weight @ jacobians[m, k]


def _outer(left: Tensor, right: Tensor | None = None) -> Float[Tensor, "n pairs"]:
    return (left if right is None else left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)


def _diagonal_term(S: Float[Tensor, "n o o"], a: Float[Tensor, "n i"]) -> Float[Tensor, "op ij"]:
    o, p = _unordered_pairs(S.shape[1], S.device)
    outputs = S.flatten(1).index_select(1, o * S.shape[1] + p)
    return outputs.T @ _products_of_pairs(a)


def _products_of_pairs(a: Float[Tensor, "n i"]) -> Float[Tensor, "n ij"]:
    """a_i a_j for i ≤ j, run by run: a quarter of the time of gathering single columns."""
    width = a.shape[1]
    products = a.new_empty(len(a), width * (width + 1) // 2)
    runs = products.split(list(range(width, 0, -1)), 1)
    for i, run in enumerate(runs):
        torch.mul(a[:, i : i + 1], a[:, i:], out=run)
    return products


def _input_term(
    state: NetworkPass,
    a: Float[Tensor, "n j"],
    m: int,
    k: int,
    jacobian: Float[Tensor, "n i p"] | None,
) -> Tensor:
    """Sum of g_o ∂a_i/∂z_p ã_j as (oj, ip); for adjacent layers only i = p counts: (oi, j)."""
    if jacobian is None:
        return _outer(state.gradients[m], state.slopes[k]).T @ a
    return _outer(state.gradients[m], a).T @ _outer(jacobian)


# Into the matrix ------------------------------------------------------------------------------


def _write_diagonal(matrix: Tensor, layer: LinearLayer, unordered: Float[Tensor, "op ij"]) -> None:
    outputs = len(layer.weight)
    output_pairs = _pair_numbers(outputs, matrix.device)
    input_pairs = _pair_numbers(_width(layer), matrix.device)
    for o in range(outputs):
        chosen = unordered.index_select(0, output_pairs[o])
        block = chosen.index_select(1, input_pairs.flatten()).unflatten(1, input_pairs.shape)
        for rows, place in _roles(layer):
            for columns, other in _roles(layer):
                view = _view(matrix, outputs, place, outputs, other)[o]
                view.copy_(block[:, rows, columns].transpose(0, 1))  # from (p, i, j)


def _write_off_diagonal(
    matrix: Tensor,
    left: LinearLayer,
    right: LinearLayer,
    adjacent: bool,
    first: Float[Tensor, "op ij"],
    second: Tensor | None = None,
) -> None:
    o, p, i, j = len(left.weight), len(right.weight), _width(left), _width(right)
    block = first.view(o, p, i, j)
    if second is not None:
        inputs = left.weight.shape[1]  # the bias's 1 depends on nothing
        part = block[:, :, :inputs]
        if adjacent:
            part.diagonal(dim1=1, dim2=2).add_(second.view(o, inputs, j).transpose(1, 2))
        else:
            part.add_(second.view(o, j, inputs, p).permute(0, 3, 2, 1))
    for rows, place in _roles(left):
        for columns, other in _roles(right):
            values = block[:, :, rows, columns].transpose(1, 2)
            _view(matrix, o, place, p, other).copy_(values)
            _view(matrix, p, other, o, place).copy_(values.permute(2, 3, 0, 1))


def _width(layer: LinearLayer) -> int:
    inputs = 0 if layer.weight_place is None else layer.weight.shape[1]
    return inputs + (layer.bias_place is not None)


def _roles(layer: LinearLayer) -> list[tuple[slice, slice]]:
    """For weight and bias, where trainable: their features and their place in θ."""
    inputs = 0 if layer.weight_place is None else layer.weight.shape[1]
    weight = [] if layer.weight_place is None else [(slice(0, inputs), layer.weight_place)]
    bias = [] if layer.bias_place is None else [(slice(inputs, inputs + 1), layer.bias_place)]
    return weight + bias


def _view(matrix: Tensor, o: int, rows: slice, p: int, columns: slice) -> Float[Tensor, "o i p j"]:
    return matrix[rows, columns].unflatten(0, (o, -1)).unflatten(2, (p, -1))


def _unordered_pairs(size: int, device: torch.device) -> Tensor:
    return torch.triu_indices(size, size, device=device)


def _pair_numbers(size: int, device: torch.device) -> Tensor:
    """The position of (a, b) among `_unordered_pairs`, whichever of the two is larger."""
    first, second = _unordered_pairs(size, device)
    numbers = torch.empty(size, size, dtype=torch.long, device=device)
    numbers[first, second] = numbers[second, first] = torch.arange(len(first), device=device)
    return numbers
