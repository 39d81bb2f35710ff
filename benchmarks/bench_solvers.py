"""Solvers on the digits network (64-32-10 tanh, p = 2,410; 1,500 training rows, 297 tests).

One thread, λ = 0.01; every claim is a ratio of two things timed or counted in the same run, in
processor seconds. `python -m pytest benchmarks/bench_solvers.py` prints the table.
"""

import numpy as np
import pytest
import torch
from bench_derivatives import cpu_seconds, digits_problem
from scipy.sparse.linalg import LinearOperator, eigsh

from influence_dag.curvature import DenseCurvature, Hessian
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.solvers import Arnoldi, ConjugateGradient, Direct, Nystroem

DAMPING = 0.01


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def problem():
    objective, train, test = digits_problem()
    return Hessian(objective, train), per_sample_gradients(objective, test).dense()


def test_one_factorisation_serves_many_solves(benchmark, problem):
    hessian, rhs = problem
    matrix = DenseCurvature(hessian.dense())

    def factorise_and_solve():
        return Direct(damping=DAMPING).factorize(matrix).solve(rhs, damping=DAMPING)

    benchmark.pedantic(factorise_and_solve, rounds=5, warmup_rounds=1)
    damped = matrix.matrix.double() + DAMPING * torch.eye(matrix.size, dtype=torch.float64)
    ours = cpu_seconds(factorise_and_solve)
    inverse = cpu_seconds(lambda: torch.linalg.inv(damped), repeats=2)
    late = cpu_seconds(lambda: Direct().factorize(matrix), repeats=1)
    benchmark.extra_info |= {"inverse": inverse / ours, "eigendecomposition": late / ours}
    assert inverse >= 2 * ours


@pytest.mark.parametrize(
    ("preconditioner", "fewer", "faster"), [("nystroem", 2.5, 2.0), ("ekfac", 1.05, 0.9)]
)
def test_preconditioned_cg_against_plain(benchmark, problem, preconditioner, fewer, faster):
    hessian, rhs = problem

    def iterations(name):
        system = ConjugateGradient(rtol=1e-4, preconditioner=name).factorize(hessian)
        return int(system.solve(rhs, damping=DAMPING).info["niter"].max())

    ours = benchmark.pedantic(lambda: iterations(preconditioner), rounds=1)
    plain = iterations("none")
    seconds = {
        name: cpu_seconds(lambda name=name: iterations(name), repeats=1)
        for name in (preconditioner, "none")
    }
    ratio = seconds["none"] / seconds[preconditioner]
    benchmark.extra_info |= {"iterations": ours, "plain": plain, "times faster": ratio}
    assert plain >= fewer * ours
    assert ratio >= faster


def test_a_block_against_row_after_row(benchmark, problem):
    hessian, rhs = problem
    system, some = ConjugateGradient(rtol=1e-4).factorize(hessian), rhs[:30]

    def block():
        return system.solve(some, damping=DAMPING)

    def one_by_one():
        return [system.solve(row, damping=DAMPING) for row in some.split(1)]

    benchmark.pedantic(block, rounds=3, warmup_rounds=1)
    ratio = cpu_seconds(one_by_one, repeats=1) / cpu_seconds(block)
    benchmark.extra_info["times faster"] = ratio
    assert ratio >= 3


def test_shared_directions_against_own(benchmark, problem):
    hessian, rhs = problem

    def solve(search):
        method = ConjugateGradient(rtol=1e-4, preconditioner="none", search=search)
        return method.factorize(hessian).solve(rhs, damping=DAMPING)

    shared = benchmark.pedantic(lambda: solve("shared"), rounds=3, warmup_rounds=1)
    own = solve("own")
    assert ((shared.x - own.x).norm(dim=1) <= 1e-3 * own.x.norm(dim=1)).all()
    ratio = cpu_seconds(lambda: solve("own"), repeats=1) / cpu_seconds(lambda: solve("shared"))
    benchmark.extra_info["times faster"] = ratio
    assert ratio >= 2


@pytest.mark.parametrize(("rank", "faster"), [(10, 0.8), (50, 1.5)])
def test_block_krylov_against_eigsh(benchmark, problem, rank, faster):
    hessian, _ = problem

    def theirs():
        def product(vector):
            rows = torch.from_numpy(np.ascontiguousarray(vector.reshape(1, -1), np.float32))
            return hessian.apply(rows)[0].numpy()

        shape = (hessian.size, hessian.size)
        operator = LinearOperator(shape, matvec=product, dtype=np.float32)
        return eigsh(operator, k=rank, which="LM", tol=1e-6)[0]

    def ours():
        return Arnoldi(rank=rank).factorize(hessian).eigenvalues.numpy()

    found = benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    np.testing.assert_allclose(np.sort(found), np.sort(theirs()), atol=5e-6)
    ratio = cpu_seconds(theirs, repeats=1) / cpu_seconds(ours)
    benchmark.extra_info["times faster"] = ratio
    assert ratio >= faster


def test_a_sketch_against_eigenpairs(benchmark, problem):
    hessian, _ = problem
    benchmark.pedantic(lambda: Nystroem(rank=50).factorize(hessian), rounds=3, warmup_rounds=1)
    sketch = cpu_seconds(lambda: Nystroem(rank=50).factorize(hessian))
    pairs = cpu_seconds(lambda: Arnoldi(rank=50).factorize(hessian))
    benchmark.extra_info["times faster"] = pairs / sketch
    assert pairs >= 2 * sketch
