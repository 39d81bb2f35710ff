"""Refits as one ensemble against refits one at a time, softmax regression and a network on digits.

One thread; every claim is a ratio of two things timed in the same run, in processor seconds.
`python -m pytest benchmarks/bench_validation.py` prints the table.
"""

import copy

import pytest
import torch
from bench_derivatives import cpu_seconds
from sklearn.datasets import load_digits
from torch import nn

from influence_dag.objective.fitting import fit
from influence_dag.objective.objective import Objective, Rows
from influence_dag.study.model import FitSettings
from influence_dag.validation import draw_subsets, leave_one_out, leaving_out, refit

LEFT_OUT = 200


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = torch.tensor(data.data / 16), torch.tensor(data.target)
    return Rows(x[:1500], y[:1500]), Rows(x[1500:], y[1500:])


@pytest.fixture(scope="module")
def softmax(digits):
    torch.manual_seed(0)
    module = nn.Linear(64, 10).double()
    fit(module, "cross_entropy", digits[0], FitSettings(weight_decay=1e-2, tolerance=1e-10))
    return Objective(module, "cross_entropy")


def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    return Objective(module, "cross_entropy")


def test_leave_one_out_refits_in_plain_refits(benchmark, softmax, digits):
    """200 refits without one row each, against L-BFGS on one of them, both started at θ."""
    train = digits[0]
    weights = leaving_out(train.shares, range(LEFT_OUT))

    def together():
        refit(softmax, train, weights, weight_decay=1e-2)

    def alone():
        rest = train[torch.arange(1500) != 7]  # the mean over 1,499: a little other, as dear
        settings = FitSettings(weight_decay=1e-2, tolerance=1e-8)
        fit(copy.deepcopy(softmax.module), "cross_entropy", rest, settings)

    benchmark.pedantic(together, rounds=3, warmup_rounds=1)
    ratio = cpu_seconds(together) / cpu_seconds(alone)
    benchmark.extra_info |= {"plain refits": ratio, "plain refits a row": ratio / LEFT_OUT}
    assert ratio <= LEFT_OUT / 25


def test_subset_steps_in_gradients(benchmark, digits):
    """20 steps of 50 networks on half the rows each, in gradients of one network on all rows."""
    train, objective = digits[0], network()
    weights = draw_subsets(1500, count=50) / 750

    def together():
        refit(
            objective, train, weights, weight_decay=1e-3, start=objective.params, max_steps=20,
            on_failure="keep",
        )  # fmt: skip

    def gradient():
        theta = objective.params.clone().requires_grad_()
        torch.autograd.grad(objective.mean_loss(theta, train), theta)

    benchmark.pedantic(together, rounds=3, warmup_rounds=1)
    ratio = cpu_seconds(together) / cpu_seconds(gradient) / (20 * 50)
    benchmark.extra_info |= {"gradients a member and step": ratio}
    assert ratio <= 1.5


def test_every_row_of_digits_left_out(benchmark, softmax, digits):
    """1,500 refits, predictions with and without leverage for 297 test rows."""

    def run():
        return leave_one_out(softmax, *digits, weight_decay=1e-2)

    result = benchmark.pedantic(run, rounds=1)
    seconds = cpu_seconds(run)
    benchmark.extra_info |= {"CPU seconds": seconds, "pearson": result.pearson}
    assert seconds <= 15
