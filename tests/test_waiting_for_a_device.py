"""Inside a block no number is asked back from the device that computes it.

What is counted here are operations that would wait until a GPU has done all that it was given: a
number of a tensor read by Python, places of what is not zero, a copy to the host. Checks of a whole
block may ask. It is asked on a CUDA device where there is one, and of the processor elsewhere.
"""

from collections import Counter

import pytest
import torch
from networks import CASES
from torch import nn
from torch.ops import aten
from torch.utils._python_dispatch import TorchDispatchMode

from influence_dag.curvature import GaussNewton
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.gradients.per_sample import gradient_layout, per_sample_gradients
from influence_dag.influence.layered import layered_products
from influence_dag.influence.perturbation import perturbation_influences
from influence_dag.influence.reductions import OverTests, StrongestPairs, over_features
from influence_dag.influence.upweighting import influences
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, ConjugateGradient, LiSSA
from influence_dag.solvers.kronecker_scores import RotatedGradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class Waits(TorchDispatchMode):
    """Counts what would wait."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        places = func in WAITING or _looks_for_places(func, args)
        self.seen[str(func)] += places or _brings_home(func, args, found)
        return found


def _looks_for_places(func, args):
    """Whether it is indexed by what is true, of which the places are counted first."""
    indexing = func in (aten.index.Tensor, aten.index_put_.default)
    return indexing and any(each is not None and each.dtype == torch.bool for each in args[1])


def _brings_home(func, args, found):
    """Whether the host gets what is on the device."""
    if func not in (aten._to_copy.default, aten.copy_.default) or DEVICE == "cpu":
        return False
    source = args[1] if func is aten.copy_.default else args[0]
    return source.is_cuda and not found.is_cuda


def waits(make) -> int:
    with Waits() as mode:
        make()
    return mode.seen.total()


@pytest.fixture
def problem():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(DEVICE)
    rows = Rows(torch.randn(40, 6), torch.arange(40) % 3).to(DEVICE)
    return Objective(module, "cross_entropy"), rows


def test_the_count_sees_a_number_that_is_read():
    values = torch.ones(3, device=DEVICE)
    assert waits(lambda: values.sum().item()) == 1
    assert waits(lambda: bool(values.any())) == 1
    assert waits(lambda: values.nonzero()) == 1
    assert waits(lambda: values[values > 0]) == 1
    assert waits(lambda: values.cpu()) == (DEVICE != "cpu")


def test_products_of_a_block_ask_nothing(problem):
    objective, rows = problem
    gradients, factors = (
        per_sample_gradients(objective, rows),
        torch.randn(7, objective.size).to(DEVICE),
    )
    network = LayeredNetwork.of(objective, rows)
    assert waits(lambda: influences(factors, gradients)) == 0
    assert waits(lambda: influences(factors[:1], gradients)) == 0
    assert waits(lambda: layered_products(network, factors, rows, chunk=2)) == 0


def test_scores_in_an_eigenbasis_ask_for_its_ends_once(problem):
    """Of the first block: none asks again, however many rows there are."""
    objective, rows = problem
    factorization = EKFAC(fisher="empirical").factorize(GaussNewton(objective, rows))
    gradients = per_sample_gradients(objective, rows)
    rotated = RotatedGradients.of(factorization, gradients)
    rotated.influences(gradients[:1], damping=0.1)
    assert waits(lambda: rotated.influences(gradients, damping=0.1)) == 0
    assert waits(lambda: RotatedGradients.of(factorization, gradients)) == 0
    assert waits(lambda: rotated.own_influences(damping=0.1)) == 0


@pytest.mark.filterwarnings("ignore:3 of 3 series still move")
def test_a_step_of_a_series_asks_for_little(problem):
    """Whether it grows, what is not finite, and who is done; not for places of who goes on."""
    objective, rows = problem
    curvature, b = GaussNewton(objective, rows), torch.randn(3, objective.size).to(DEVICE)

    def of_steps(count):
        series = LiSSA(maxiter=count, rtol=1e-30, scale=20.0, on_failure="warn")
        return waits(lambda: series.factorize(curvature).solve(b, damping=0.1))

    of_steps(2)
    assert of_steps(30) - of_steps(20) <= 10 * 6


@pytest.mark.filterwarnings("ignore:7 of 7 systems missed")
def test_a_step_of_conjugate_gradients_asks_for_little(problem):
    """What is not finite, whose residual halved, who is done; not what the preconditioner holds."""
    objective, rows = problem
    curvature, b = GaussNewton(objective, rows), torch.randn(7, objective.size).to(DEVICE)

    def of_steps(count):
        solver = ConjugateGradient(maxiter=count, rtol=1e-30, rank=5, on_failure="warn")
        return waits(lambda: solver.factorize(curvature).solve(b, damping=0.1))

    of_steps(2)
    assert of_steps(7) - of_steps(4) <= 3 * 7


def test_reductions_ask_nothing():
    values, slots = torch.randn(5, 9, 2, 2).to(DEVICE), torch.arange(9).to(DEVICE)
    pairs, maps = StrongestPairs(3), OverTests("l2")
    # Squares that float32 may lose are looked for on a processor alone, which float64 stands for.
    other = values.double()
    assert waits(lambda: [over_features(other, by) for by in ("mean", "absmax", "l2")]) == 0
    assert waits(lambda: [pairs.add([values], slots) for _ in range(2)]) == 0
    assert waits(lambda: [maps.add(values) for _ in range(2)] + [maps.result()]) == 0


@pytest.mark.parametrize(
    "name", ["layered", pytest.param("pooled images", marks=pytest.mark.campaign)]
)
def test_checks_of_a_block_ask_as_often_for_few_rows_as_for_many(problem, name):
    if name == "layered":
        objective, rows = problem
    else:
        module, x, y = CASES[name].make()
        objective, rows = Objective(module.to(DEVICE), "cross_entropy"), Rows(x, y).to(DEVICE)
    few, factors = rows[: len(rows) // 2], torch.randn(64, objective.size).to(rows.x)
    layout = gradient_layout(objective, rows)

    def of_pairs(k, some):
        return waits(lambda: perturbation_influences(objective, factors[:k], some, chunk=4))

    def of_rows(some):
        return waits(lambda: per_sample_gradients(objective, some, layout=layout))

    assert of_pairs(4, few) == of_pairs(64, rows) <= 9
    assert of_rows(few) == of_rows(rows)
