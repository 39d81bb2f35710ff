"""Whether a method had better form the curvature than multiply with it through the model."""

import math

from influence_dag.solvers.base import Method

_LARGEST = 4096  # parameters, 128 MiB in float64


OF_LINEAR_LAYERS = 1 / 8  # of p products, by which a matrix in closed form has paid


def worth_forming(
    method: Method, *, size: int, rows: int, damping: float, share: float = 1 / 2
) -> bool:
    """True where the products that a method is expected to take cost more than the matrix.

    Of p parameters a matrix costs 0.8 p products of a convolutional network and p / 9 of a network
    of Linear layers (digits_cnn, digits: `make fidelity`); products with it are nearly free. Worth
    it from p / 2 expected products on, up to 4,096 parameters; from another `share` of p where it
    is known how the matrix will be made. A method says how many it expects (`expected_products`);
    one that looks into the layers, or wants single rows, says nothing.
    """
    expected = getattr(method, "expected_products", None)
    products = expected(size=size, rows=rows, damping=damping) if expected else 0
    return products == math.inf or (size <= _LARGEST and products >= share * size)
