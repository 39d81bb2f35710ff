"""The matrix that stored Kronecker factors stand for, block by block."""

import torch

from influence_dag.curvature import GaussNewton


def factorize(method, objective, rows, batch_size=4):
    return method.factorize(GaussNewton(objective, rows, batch_size=batch_size))


def blocks_of(tensors):
    """(positions in θ, eigenvectors, eigenvalues) of each block, from what would be stored.

    Position [o, i] of a layer is its weight's, row-major; the bias is the last column.
    """
    for name in [name for name in tensors if name.endswith("places")]:
        prefix = name.removesuffix("dense_places").removesuffix("places")
        ranges = [torch.arange(*place) for place in tensors[name].tolist() if place[0] >= 0]
        if name.endswith("dense_places"):
            vectors = tensors[prefix + "dense_eigenvectors"]
            yield torch.cat(ranges), vectors, tensors[prefix + "dense_eigenvalues"]
            continue
        values = tensors[prefix + "eigenvalues"]
        columns = [r.view(len(values), -1) for r in ranges]
        vectors = torch.kron(
            tensors[prefix + "gradient_eigenvectors"], tensors[prefix + "activation_eigenvectors"]
        )
        yield torch.cat(columns, dim=1).flatten(), vectors, values.flatten()


def assembled(factorization, p):
    """The matrix that a factorisation stands for, and where it may be non-zero."""
    matrix, inside = torch.zeros(p, p, dtype=torch.float64), torch.zeros(p, p, dtype=torch.bool)
    for index, vectors, values in blocks_of(factorization.tensors()):
        where = torch.meshgrid(index, index, indexing="ij")
        matrix[where] = (vectors * values) @ vectors.T
        inside[where] = True
    return matrix, inside
