"""EK-FAC and K-FAC by their definitions, from derivatives of single rows."""

import torch
from adversary import oracle
from adversary.data import each
from torch import nn

import influence_dag as idag
from influence_dag.curvature import GaussNewton


def ekfac_error(checks, parts=None, fisher="exact"):
    """How far the corrected eigenvalues are from the Fisher's diagonal, and solves from theirs.

    The Fisher is the mean of Jᵀ S J over rows, or of other `parts`; which layers are
    Kronecker products and in which basis is the package's own choice, what stands there is not.
    """
    truth = checks.truth
    wanted = oracle.mean(truth.train.gauss_newtons if parts is None else parts, truth.weights)
    rhs, expected, errors = truth.test.gradients, torch.zeros_like(truth.test.gradients), []
    covered = []
    for index, V, values in _blocks(_factorization(checks, "ekfac", fisher=fisher).tensors()):
        block = wanted[index][:, index]
        right = (V * (block @ V)).sum(0)
        off = (right - values).abs().max() - checks.rounding_of_second_derivatives
        errors.append(float(off.relu() / wanted.abs().max().clamp(min=1e-30)))
        errors.append(float((V.T @ V - torch.eye(len(V))).abs().max()))
        expected[:, index] = ((rhs[:, index] @ V) / (right + truth.damping)) @ V.T
        covered += index.tolist()
    assert sorted(covered) == list(range(len(wanted))), "blocks do not cover θ once"
    found = checks.factors_of("ekfac", checks.test, fisher=fisher)
    solved = (found.double() - expected).norm(dim=1) / rhs.norm(dim=1) * truth.damping
    return max(*errors, float(solved.max()))


def kfac_error(checks):
    """How far the blocks of Linear layers are from G ⊗ A, formed from each row's own a and g.

    By more than what rounding of p - p² leaves, times inputs twice.
    """
    layers = _linear_layers(checks.case)
    assembled = _by_layer(_factorization(checks, "kfac"))
    errors = [
        float(
            ((assembled[name] - wanted).abs().max() - checks.rounding_of_second_derivatives).relu()
            / wanted.abs().max().clamp(min=1e-30)
        )
        for name, wanted in _kronecker_products(checks, layers).items()
        if name in assembled
    ]
    return max(errors, default=0.0)


def _factorization(checks, method, **settings):
    objective = checks.wrapped.objective
    rows = idag.Rows.from_loader(checks.train).to(objective.device, objective.dtype)
    return idag.solvers.build(method, settings).factorize(GaussNewton(objective, rows))


def _blocks(tensors):
    """(positions in θ, eigenvectors, eigenvalues) of each block, from what would be stored.

    Entry [o, i] of a layer is its weight's, row-major; the bias is the last column.
    """
    for name in [name for name in tensors if name.endswith("places")]:
        prefix = name.removesuffix("dense_places").removesuffix("places")
        ranges = [torch.arange(*place) for place in tensors[name].tolist() if place[0] >= 0]
        if name.endswith("dense_places"):
            vectors = tensors[prefix + "dense_eigenvectors"]
            yield torch.cat(ranges), vectors.double(), tensors[prefix + "dense_eigenvalues"]
            continue
        values = tensors[prefix + "eigenvalues"]
        columns = [r.view(len(values), -1) for r in ranges]
        vectors = torch.kron(
            tensors[prefix + "gradient_eigenvectors"].double(),
            tensors[prefix + "activation_eigenvectors"].double(),
        )
        yield torch.cat(columns, dim=1).flatten(), vectors, values.flatten()


def _by_layer(factorization):
    tensors = factorization.tensors()
    found = {}
    for name in [name for name in tensors if name.endswith("activation_eigenvectors")]:
        layer = name.removesuffix("activation_eigenvectors").rstrip(".")
        prefix = layer + "." if layer else ""
        Q_A, Q_G = (
            tensors[f"{prefix}{role}_eigenvectors"].double() for role in ("activation", "gradient")
        )
        values = tensors[f"{prefix}eigenvalues"].double().flatten()
        Q = torch.kron(Q_G, Q_A)
        found[layer] = (Q * values) @ Q.T
    return found


def _linear_layers(case):
    module = case.module(torch.float64)
    return [name for name, layer in module.named_modules() if type(layer) is nn.Linear]


def _kronecker_products(checks, layers):
    """G ⊗ A of the layers that a row calls once, on a vector or on a sequence of vectors."""
    case, module = checks.case, checks.case.module(torch.float64)
    x, y = case.part(slice(0, case.rows))
    A, G, calls = {}, {}, []
    with oracle.exact_kernels():
        for name in layers:
            layer = module.get_submodule(name)
            layer.register_forward_hook(_recording(name, calls))
        for i, weight in enumerate(checks.truth.weights.tolist()):
            calls.clear()
            f = case.output_of(oracle.call(module, oracle.row(x, i)))
            target = each(lambda t, i=i: t[i], y)
            for name, a, z in _called_once(calls):
                g, positions = _sent_back(f, target, case.value, z), z[0, ..., 0].numel()
                a = _with_one(module.get_submodule(name), a)
                A[name] = A.get(name, 0) + weight * a.T @ a
                G[name] = G.get(name, 0) + weight * g / positions
    total = checks.truth.weights.sum()
    return {name: torch.kron(G[name] / total, A[name] / total) for name in A}


def _recording(name, calls):
    def hook(_module, inputs, output):
        calls.append((name, inputs[0].detach().clone(), output))
        return output.clone()  # what follows may work in place

    return hook


def _called_once(calls):
    names = [name for name, _, _ in calls]
    return [call for call in calls if names.count(call[0]) == 1 and call[1].ndim in (2, 3)]


def _with_one(layer, a):
    a = a.detach().flatten(0, -2)
    trainable = layer.bias is not None and layer.bias.requires_grad
    return torch.cat([a, torch.ones_like(a[:, :1])], 1) if trainable else a


def _sent_back(f, target, value, z):
    """Σ over positions of (∂f/∂z)ᵀ S (∂f/∂z)."""
    point = f.detach().reshape(-1).clone().requires_grad_()
    (slope,) = oracle.derivative(value(point.view(f.shape), target), [point], again=True)
    S = torch.stack([oracle.derivative(entry, [point])[0] for entry in slope])
    J = torch.stack([oracle.derivative(entry, [z])[0][0] for entry in f.reshape(-1)])
    J = J.flatten(1, -2) if J.ndim > 2 else J[:, None]
    return torch.einsum("ato,ab,btq->oq", J, S, J)
