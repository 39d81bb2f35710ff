from dataclasses import dataclass

import torch

from influence_dag.curvature import DenseCurvature


def spd_matrix(size, *, decay=0.3, seed=0):
    """Positive definite with eigenvalues exp(-decay·i) in a random basis, float64."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = (Q * torch.exp(-decay * torch.arange(size, dtype=torch.float64))) @ Q.T
    return (matrix + matrix.T) / 2


def random_rhs(rows, size, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def relative_error(actual, expected):
    expected = expected.to(torch.float64)
    return ((actual.to(torch.float64) - expected).norm() / expected.norm()).item()


class Counted:
    """A curvature that counts its products and refuses to be formed."""

    def __init__(self, matrix):
        self.inner = DenseCurvature(matrix)
        self.calls, self.rows_seen = 0, []

    size = property(lambda self: self.inner.size)
    dtype = property(lambda self: self.inner.dtype)
    device = property(lambda self: self.inner.device)

    def apply(self, vectors):
        self.calls += 1
        self.rows_seen.append(len(vectors))
        return self.inner.apply(vectors)

    def dense(self):
        raise AssertionError("an iterative method formed the matrix")


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """rowsᵀ rows / n: a curvature that is a mean over rows, with cheap products."""

    rows: torch.Tensor

    size = property(lambda self: self.rows.shape[1])
    dtype = property(lambda self: self.rows.dtype)
    device = property(lambda self: self.rows.device)

    def apply(self, vectors):
        return (vectors @ self.rows.T) @ self.rows / len(self.rows)

    def dense(self):
        return self.rows.T @ self.rows / len(self.rows)
