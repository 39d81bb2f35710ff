"""Whether a method had better form the curvature than multiply with it through the model."""

from influence_dag.solvers.arnoldi import Arnoldi
from influence_dag.solvers.base import Method
from influence_dag.solvers.cg import ConjugateGradient
from influence_dag.solvers.direct import Direct
from influence_dag.solvers.lissa import LiSSA
from influence_dag.solvers.nystroem import Nystroem

_LARGEST = 4096  # parameters, 128 MiB in float64
_ITERATIONS = 30  # of preconditioned conjugate gradients at an ordinary damping
_KRYLOV = 4  # products a pair that Arnoldi takes


def worth_forming(method: Method, *, size: int, rows: int, damping: float) -> bool:
    """True where the products that a method is expected to take cost more than the matrix.

    Of p parameters a matrix costs 0.8 p products of a convolutional network and p / 8 of a network
    of Linear layers (digits_cnn, digits: `make fidelity`); products with it are nearly free. Worth
    it from p / 2 expected products on, up to 4,096 parameters.
    """
    if isinstance(method, Direct):
        return True
    return size <= _LARGEST and 2 * _products(method, size, rows, damping) >= size


def _products(method: Method, size: int, rows: int, damping: float) -> int:
    match method:
        case LiSSA(batch_size=None):
            return rows * method.maxiter
        case ConjugateGradient(preconditioner="none" | "jacobi" | "nystroem"):
            steps = _ITERATIONS if damping > 0 else size
            return method.rank + rows * min(steps, method.maxiter or steps)
        case Arnoldi():
            return _KRYLOV * method.rank
        case Nystroem():
            return method.rank * (1 + method.power_iterations)
    return 0  # looks into the layers, or wants single rows
