"""Derivatives of the digits network (64-32-10 tanh, p = 2,410; 1,500 training rows, 297 tests).

One thread; every claim is a ratio of two things timed in the same run, in processor seconds.
`python -m pytest benchmarks/bench_derivatives.py` prints the table.
"""

import re
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from influence_dag.curvature import GaussNewton, Hessian
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.gradients.per_sample import gradient_layout, per_sample_gradients
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.influence.upweighting import influences
from influence_dag.objective.batching import check_all_rows
from influence_dag.objective.objective import Objective, Rows

DATA = Path(__file__).parents[1] / "tests" / "digits_mlp.npz"


def cpu_seconds(function: Callable[[], object], *, repeats: int = 5) -> float:
    """The fastest of several calls after a first one, in processor seconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def perturbation_megabytes() -> float:
    """What the whole perturbation tensor adds to this process's peak beside the tensor itself."""

    def peak() -> float:
        # Not ru_maxrss, which a new process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024

    torch.set_num_threads(1)
    objective, train, test = digits_problem()
    factors = torch.randn(len(test), objective.size)
    perturbation_influences(objective, factors[:32], train[:32])
    before = peak()
    result = perturbation_influences(objective, factors, train)
    return peak() - before - result.nbytes / 2**20


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits_problem() -> tuple[Objective, Rows, Rows]:
    """The objective with training and test rows."""
    with np.load(DATA) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file}
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    roles = [(layer, role) for layer in (0, 2) for role in ("weight", "bias")]
    module.load_state_dict({f"{i}.{role}": arrays[f"{role}{i}"] for i, role in roles})
    rows = [Rows(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    return Objective(module, "cross_entropy"), *rows


@pytest.fixture(scope="module")
def digits():
    return digits_problem()


@pytest.fixture(scope="module")
def factors(digits):
    objective, train, test = digits
    H = Hessian(objective, train).dense()
    H.diagonal().add_(0.01)
    rhs = per_sample_gradients(objective, test).dense()
    return torch.cholesky_solve(rhs.T, torch.linalg.cholesky(H)).T.contiguous()


@pytest.mark.parametrize("curvature", [Hessian, GaussNewton])
def test_structured_curvature_is_seven_times_faster_than_products(benchmark, digits, curvature):
    objective, train, _ = digits
    structured = curvature(objective, train, route="layered")
    general = curvature(objective, train, route="autograd")
    benchmark.pedantic(structured.dense, rounds=5, warmup_rounds=1)
    ratio = cpu_seconds(general.dense, repeats=2) / cpu_seconds(structured.dense)
    benchmark.extra_info["times faster"] = ratio
    assert ratio >= 7


@pytest.mark.parametrize("curvature", [Hessian, GaussNewton])
def test_a_matrix_costs_a_tenth_more_for_being_checked(benchmark, digits, curvature):
    """In closed form, with its products by double backward over all rows and the differences."""
    objective, train, _ = digits
    operator = curvature(objective, train)
    network = LayeredNetwork.of(objective, train)

    def unchecked():
        return operator.layered_sum(network, train)

    benchmark.pedantic(operator.dense, rounds=5, warmup_rounds=1)
    ratio = cpu_seconds(operator.dense, repeats=9) / cpu_seconds(unchecked, repeats=9)
    benchmark.extra_info["of the time unchecked"] = ratio
    assert ratio <= 1.2


def test_captured_gradients_and_their_check_cost_two_batched_gradients(benchmark, digits):
    objective, train, _ = digits
    layout = gradient_layout(objective, train)

    def capture():
        return per_sample_gradients(objective, train, layout=layout, batch_size=len(train))

    def one(x, y):
        return grad(objective.mean_loss)(objective.params, Rows(x[None], y[None]))

    batched = cpu_seconds(lambda: grad(objective.mean_loss)(objective.params, train), repeats=50)
    each = cpu_seconds(lambda: vmap(one)(train.x, train.y), repeats=10)
    benchmark.pedantic(capture, rounds=20, warmup_rounds=1)
    captured = cpu_seconds(capture, repeats=50)
    benchmark.extra_info |= {
        "batched gradients": captured / batched,
        "vmap over captured": each / captured,
    }
    assert captured <= 2 * batched


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1568, 10))


def multilayer() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


@pytest.mark.parametrize(("build", "times"), [(multilayer, 3), (convolutional, 8)])
def test_rows_of_a_float32_model_are_looked_at_in_float64(benchmark, monkeypatch, build, times):
    """That each stands for itself: against the same look in the model's own precision."""
    torch.manual_seed(0)
    objective = Objective(build(), "cross_entropy")
    rows = Rows(torch.randn(1000, 1, 28, 28), torch.randint(0, 10, (1000,)))
    looked = lambda: check_all_rows(objective, rows)  # noqa: E731
    benchmark.pedantic(looked, rounds=2, warmup_rounds=1)
    in_float64 = cpu_seconds(looked, repeats=3)

    def unable(*_):
        raise RuntimeError("no copy")

    monkeypatch.setattr(Objective, "in_float64", unable)
    in_float32 = cpu_seconds(looked, repeats=3)
    a_gradient = cpu_seconds(lambda: grad(objective.mean_loss)(objective.params, rows), repeats=3)
    benchmark.extra_info |= {
        "of the same in float32": in_float64 / in_float32,
        "batched gradients": in_float64 / a_gradient,
    }
    assert in_float64 <= times * in_float32


def test_the_whole_perturbation_tensor_takes_less_memory_than_it_is(benchmark, digits, factors):
    objective, train, _ = digits
    benchmark.pedantic(
        lambda: perturbation_influences(objective, factors, train), rounds=3, warmup_rounds=1
    )
    # A fresh process: a peak that an earlier benchmark has reached would hide this one's.
    with get_context("spawn").Pool(1) as pool:
        temporaries = pool.apply(perturbation_megabytes)
    seconds = cpu_seconds(lambda: perturbation_influences(objective, factors, train), repeats=3)
    benchmark.extra_info |= {
        "cpu seconds": seconds,
        "microseconds a pair": seconds * 1e6 / (len(factors) * len(train)),
        "megabytes beside the result": temporaries,
    }
    assert temporaries <= len(factors) * train.x.nbytes / 2**20


@pytest.mark.parametrize("route", ["layered", "autograd"])
def test_perturbation_routes_against_matrix_products(benchmark, digits, factors, route):
    """A pair costs about 15,000 multiply-adds; the rest is memory and overhead."""
    objective, train, _ = digits
    matrix = torch.randn(1024, 1024)
    per_operation = cpu_seconds(lambda: matrix @ matrix) / (2 * 1024**3)
    function = lambda: perturbation_influences(objective, factors, train, route=route)  # noqa: E731
    benchmark.pedantic(function, rounds=3, warmup_rounds=1)
    operations = 4 * (64 * 32 + 32 * 10) * 2 * len(factors) * len(train)
    share = operations * per_operation / cpu_seconds(function, repeats=3)
    benchmark.extra_info["share of the matrix product rate"] = share
    assert share > 0.15


def test_influences_run_at_the_speed_of_one_matrix_product(benchmark, digits, factors):
    objective, train, _ = digits
    gradients = per_sample_gradients(objective, train)
    dense = gradients.dense()
    product = cpu_seconds(lambda: factors @ dense.T)
    benchmark.pedantic(lambda: influences(factors, gradients), rounds=5, warmup_rounds=1)
    ratio = cpu_seconds(lambda: influences(factors, gradients)) / product
    benchmark.extra_info["matrix products"] = ratio
    assert ratio < 2
