"""The steps of a fit are those of torch's L-BFGS, to the last bit and without its compiler."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from influence_dag.objective import modules
from influence_dag.objective.lbfgs import Lbfgs
from influence_dag.objective.objective import Rows
from influence_dag.study.model import FitSettings

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(2, 20))]


def problem(kind: type[nn.Module], seed: int):
    """A network's penalised loss as `θ → value, gradient`, and where to begin."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 6), kind(), nn.Linear(6, 3)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3
    theta = nn.utils.parameters_to_vector(network.parameters()).detach()
    names, shapes = zip(*((n, p.shape) for n, p in network.named_parameters()), strict=True)

    def evaluate(theta):
        theta = theta.detach().requires_grad_()
        parts = theta.split([shape.numel() for shape in shapes])
        state = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(network, state, (x,)), y)
        loss = loss + 1e-4 * theta @ theta
        return loss.detach(), torch.autograd.grad(loss, theta)[0]

    return evaluate, theta


def steps_of_torch(evaluate, theta, *, runs: list[int], history: int, tolerance: float):
    """θ after each run of so many steps."""
    point = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_eval=2500,
        tolerance_grad=tolerance,
        tolerance_change=1e-15,
        history_size=history,
        line_search_fn="strong_wolfe",
    )

    def closure():
        value, point.grad = evaluate(point)
        return value

    for most in runs:
        optimizer.param_groups[0]["max_iter"] = most
        optimizer.step(closure)
        yield point.detach().clone()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_every_step_is_that_of_torch(kind, seed):
    """Of a smooth loss, and of one with kinks, at which line searches end in a small bracket."""
    evaluate, theta = problem(kind, seed)
    settings = {"history": 8, "tolerance": 1e-9}
    search, runs = Lbfgs(evaluate, theta, **settings), [1, 2, 20, 60]
    for most, wanted in zip(
        runs, steps_of_torch(evaluate, theta, runs=runs, **settings), strict=True
    ):
        taken = search.run(most)
        assert taken <= most
        assert torch.equal(search.theta, wanted)
    value, gradient = evaluate(search.theta)
    assert search.value == float(value)
    assert torch.equal(search.gradient, gradient)
    assert search.value < float(evaluate(theta)[0]) / 2


def test_a_search_that_is_at_the_minimum_takes_no_step():
    search = Lbfgs(lambda x: (x @ x, 2 * x), torch.zeros(3), history=5, tolerance=1e-9)
    assert search.run(10) == 0
    assert search.is_done


def test_a_fit_makes_no_optimizer_of_torchs(monkeypatch):
    """The first of a process imports torch's compiler."""
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", None)
    x = torch.randn(30, 2, dtype=torch.float64)
    module = nn.Linear(2, 1).double()
    report = modules.fit(module, "mse", Rows(x, x.sum(1, keepdim=True)), FitSettings())
    assert report.converged
