"""EK-FAC on the digits network, on 784-1024-1024-10 with 2,000 rows, and on a convolution.

One thread; every claim is a ratio of two things timed in the same run, in processor seconds.
`python -m pytest benchmarks/bench_kronecker.py` prints the table.
"""

import pytest
import torch
from bench_derivatives import cpu_seconds, digits_problem
from torch import nn

from influence_dag.curvature import GaussNewton
from influence_dag.curvature.kronecker import corrected_eigenvalues, eigenbases, kronecker_sums
from influence_dag.curvature.kronecker_layout import KroneckerLayout
from influence_dag.curvature.kronecker_pairs import FisherPairs
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC
from influence_dag.solvers.kronecker_scores import RotatedGradients

DAMPING = 0.01


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def wide():
    """1.9 million parameters, n = 2,000 random rows."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(1024, 10))
    rows = Rows(torch.randn(2000, 784), torch.randint(0, 10, (2000,)))
    return Objective(module, "cross_entropy"), rows


def gemm_rate():
    """Multiply-adds a second of a float32 product of the wide network's size."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 1024**3 / cpu_seconds(lambda: a @ b)


@pytest.mark.parametrize(("fisher", "gradients"), [("empirical", 8), ("sampled", 8), ("exact", 25)])
def test_the_whole_of_digits_in_batched_gradients(benchmark, fisher, gradients):
    """Captures, sums, eigenbases, corrected eigenvalues: 1,500 rows, p = 2,410."""
    objective, train, _ = digits_problem()

    def run():
        return EKFAC(fisher=fisher).factorize(GaussNewton(objective, train))

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    ratio = cpu_seconds(run) / cpu_seconds(lambda: per_sample_gradients(objective, train))
    benchmark.extra_info |= {"batched gradients": ratio}
    assert ratio <= gradients


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_corrected_eigenvalues_run_at_the_rate_of_products(benchmark, wide, fisher):
    """Rotations and one product a layer: the exact Fisher rotates nine gradients a row."""
    objective, rows = wide
    layout = KroneckerLayout.of(objective, rows)
    batches = list(FisherPairs(objective, rows, layout, fisher))
    bases = eigenbases(kronecker_sums(batches, layout))
    benchmark.pedantic(lambda: corrected_eigenvalues(batches, bases), rounds=3, warmup_rounds=1)
    vectors = len(batches[0].pairs[0][1])
    work = sum(
        len(rows) * (d_in**2 + vectors * d_out**2 + d_in * d_out)
        for d_in, d_out in [(785, 1024), (1025, 1024), (1025, 10)]
    )
    seconds = cpu_seconds(lambda: corrected_eigenvalues(batches, bases), repeats=2)
    share = work / seconds / gemm_rate()
    benchmark.extra_info |= {"share of the rate of products": share}
    assert share >= 0.5


def test_convolution_against_one_row_at_a_time(benchmark):
    """64 positions: the per-sample matrices of a batch together, against each gradient alone."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 10, 3, padding=1)]
    module = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rows = Rows(torch.randn(300, 1, 8, 8), torch.randint(0, 10, (300,)))
    objective = Objective(module, "cross_entropy")
    layout = KroneckerLayout.of(objective, rows)
    batches = list(FisherPairs(objective, rows, layout, "empirical"))
    bases = eigenbases(kronecker_sums(batches, layout))
    benchmark.pedantic(lambda: corrected_eigenvalues(batches, bases), rounds=5, warmup_rounds=1)

    def one_at_a_time():
        for pairs in (batch.pairs for batch in batches):
            for (a, g), basis in zip(pairs, bases, strict=True):
                Q_A, Q_G = basis.activation_vectors.float(), basis.gradient_vectors.float()
                sum((Q_G.T @ (g[0, i].T @ a[i]) @ Q_A).square() for i in range(len(a)))

    ours = cpu_seconds(lambda: corrected_eigenvalues(batches, bases))
    ratio = cpu_seconds(one_at_a_time, repeats=2) / ours
    benchmark.extra_info |= {"times faster": ratio}
    assert ratio >= 1.5


def test_scores_inside_the_eigenbasis_against_solved_factors(benchmark, wide):
    """16 test rows: rotating vectors instead of matrices; training rows are rotated once."""
    objective, rows = wide
    factorization = EKFAC(fisher="sampled").factorize(GaussNewton(objective, rows))
    gradients = per_sample_gradients(objective, rows)
    test = gradients[:16]
    rotated = RotatedGradients.of(factorization, gradients)
    benchmark.pedantic(lambda: rotated.influences(test, damping=DAMPING), rounds=3)

    def solved():
        return gradients.inner(factorization.solve(test.dense(), damping=DAMPING).x)

    seconds = cpu_seconds(lambda: rotated.influences(test, damping=DAMPING), repeats=2)
    ratio = cpu_seconds(solved, repeats=1) / seconds
    share = len(rows) * len(test) * objective.size / seconds / gemm_rate()
    benchmark.extra_info |= {"times faster": ratio, "share of the rate of products": share}
    assert ratio >= 2
    assert share >= 0.5
