"""Inside a block no number is asked back from the device that computes it.

What is counted here are operations that would wait until a GPU has done all that it was given: a
number of a tensor read by Python, places of what is not zero. Checks of a whole block may ask.
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
from influence_dag.solvers import EKFAC
from influence_dag.solvers.kronecker_scores import RotatedGradients

WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class Waits(TorchDispatchMode):
    """Counts what would wait."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[str(func)] += func in WAITING
        return func(*args, **(kwargs or {}))


def waits(make) -> int:
    with Waits() as mode:
        make()
    return mode.seen.total()


@pytest.fixture
def problem():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    rows = Rows(torch.randn(40, 6), torch.arange(40) % 3)
    return Objective(module, "cross_entropy"), rows


def test_the_count_sees_a_number_that_is_read():
    values = torch.ones(3)
    assert waits(lambda: values.sum().item()) == 1
    assert waits(lambda: bool(values.any())) == 1
    assert waits(lambda: values.nonzero()) == 1


def test_products_of_a_block_ask_nothing(problem):
    objective, rows = problem
    gradients, factors = per_sample_gradients(objective, rows), torch.randn(7, objective.size)
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


def test_reductions_ask_nothing():
    values, slots = torch.randn(5, 9, 2, 2), torch.arange(9)
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
        objective, rows = Objective(module, "cross_entropy"), Rows(x, y)
    few, factors = rows[: len(rows) // 2], torch.randn(64, objective.size).to(objective.dtype)
    layout = gradient_layout(objective, rows)

    def of_pairs(k, some):
        return waits(lambda: perturbation_influences(objective, factors[:k], some, chunk=4))

    def of_rows(some):
        return waits(lambda: per_sample_gradients(objective, some, layout=layout))

    assert of_pairs(4, few) == of_pairs(64, rows) <= 9
    assert of_rows(few) == of_rows(rows)
