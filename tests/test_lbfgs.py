"""L-BFGS gives the numbers of torch's own optimizer, whatever the function is like."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from influence_dag.objective.lbfgs import HISTORY, LBFGS

generator = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=generator, dtype=torch.float64)
Y = torch.randint(3, (40,), generator=generator)
SCALES = torch.logspace(0, 3, 80, dtype=torch.float64)


def network(theta: Tensor) -> Tensor:
    hidden = torch.tanh(X @ theta[:30].view(6, 5))
    return F.cross_entropy(hidden @ theta[30:45].view(5, 3), Y) + 1e-3 / 2 * theta @ theta


def valley(theta: Tensor) -> Tensor:
    """Rosenbrock's: steps that bend, searches that have to look twice."""
    return (100 * (theta[1:] - theta[:-1] ** 2) ** 2 + (1 - theta[:-1]) ** 2).sum()


def bowl(theta: Tensor) -> Tensor:
    """As many steps as there are pairs to be kept, and more."""
    return (SCALES * theta**2).sum() / 2 + theta.cos().sum()


def slope(theta: Tensor) -> Tensor:
    """Without a minimum; in the end without curvature that is worth remembering."""
    return F.softplus(theta).sum()


FUNCTIONS = {network: 45, valley: 12, bowl: 80, slope: 3}


def by_torch(function, theta: Tensor, runs: list[int], tolerance: float) -> tuple[Tensor, int]:
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_eval=2500,
        tolerance_grad=tolerance,
        tolerance_change=1e-15,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = function(theta)
        value.backward()
        return value

    for steps in runs:
        optimizer.param_groups[0]["max_iter"] = steps
        optimizer.step(closure)
    return theta.detach(), optimizer.state[theta]["n_iter"]


def evaluated(function):
    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        point = theta.clone().requires_grad_()
        value = function(point)
        return value.detach(), torch.autograd.grad(value, point)[0]

    return evaluate


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("runs", [[1], [7, 20], [100, 100]], ids=str)
def test_every_step_is_that_of_torch(function, runs):
    start = torch.linspace(-1.3, 0.9, FUNCTIONS[function], dtype=torch.float64)
    expected, steps = by_torch(function, start, runs, 1e-9)
    descent = LBFGS(evaluated(function), start, tolerance=1e-9)
    taken = [descent.run(most) for most in runs]
    assert torch.equal(descent.theta, expected)
    assert sum(taken) == descent.steps == steps
    value, gradient = evaluated(function)(descent.theta)
    assert descent.value == value
    assert torch.equal(descent.gradient, gradient)


def test_the_oldest_pairs_are_forgotten_as_torch_does():
    """So that one of the cases above is about them."""
    start = torch.linspace(-1.3, 0.9, FUNCTIONS[bowl], dtype=torch.float64)
    assert LBFGS(evaluated(bowl), start, tolerance=1e-9).run(200) > HISTORY


def test_nothing_moves_at_a_minimum():
    descent = LBFGS(evaluated(network), torch.zeros(45, dtype=torch.float64), tolerance=10.0)
    assert descent.run(100) == 0
    assert not descent.theta.any()
