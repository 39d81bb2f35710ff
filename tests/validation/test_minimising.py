"""The memory of many minimisations at once, against the dense recursion of each."""

import pytest
import torch
from torch.testing import assert_close

from influence_dag.validation.minimising import TRIALS, _Memory, minimise

P, PROBLEMS, KEPT = 6, 3, 4
METRIC = torch.diag(torch.linspace(0.5, 2, P, dtype=torch.float64))


def dense(pairs, start):
    """Of one problem: $H' = V^T H V + s s^T / s^T y$ with $V = I - y s^T / s^T y$ (Nocedal)."""
    H, identity = start, torch.eye(P, dtype=torch.float64)
    for s, y in pairs:
        V = identity - y.outer(s) / (s @ y)
        H = V.T @ H @ V + s.outer(s) / (s @ y)
    return H


def remembered(metric):
    """Six steps of three problems, of which the second met no positive curvature in the fifth."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(PROBLEMS, P, P, generator=generator, dtype=torch.float64)
    H = root @ root.mT + torch.eye(P)
    memory, steps = _Memory(KEPT, metric), []
    for k in range(6):
        s = torch.randn(PROBLEMS, P, generator=generator, dtype=torch.float64)
        y = torch.einsum("mpq,mq->mp", H, s)
        if k == 4:
            y[1] = -y[1]
        memory.add(s, y)
        steps.append((s, y))
    pairs = [[(s[m], y[m]) for s, y in steps[-KEPT:] if s[m] @ y[m] > 0] for m in range(PROBLEMS)]
    return memory, pairs, torch.randn(PROBLEMS, P, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("metric", [None, lambda rows: rows @ METRIC], ids=["scale", "metric"])
def test_directions_are_those_of_the_dense_recursion(metric):
    memory, pairs, g = remembered(metric)
    for m in range(PROBLEMS):
        s, y = pairs[m][-1]
        start = METRIC if metric else torch.eye(P, dtype=torch.float64) * (s @ y) / (y @ y)
        expected = -dense(pairs[m], start) @ g[m]
        assert_close(memory.direction(g)[m], expected)
    some = torch.tensor([True, False, True])
    assert_close(memory[some].direction(g[some]), memory.direction(g)[some])


def test_a_problem_that_forgets_goes_back_to_the_metric_and_no_other_does():
    memory, _, g = remembered(lambda rows: rows @ METRIC)
    before = memory.direction(g)
    memory.forget(torch.tensor([False, True, False]))
    after = memory.direction(g)
    assert_close(after[1], -g[1] @ METRIC)
    assert_close(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_nothing_is_known_before_the_first_step():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    assert_close(_Memory(KEPT, None).direction(g), -torch.tensor([[0.6, 0.8], [0.3, 0.4]]).double())


def test_what_is_remembered_leads_no_further_after_a_search_that_failed():
    A = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    start, seen, failing = torch.ones(1, 3, dtype=torch.float64), [], range(0)

    def evaluate(_, points):
        seen.append(points)
        values = torch.inf if len(seen) - 1 in failing else 0.5 * (points @ A * points).sum(1)
        return torch.as_tensor(values, dtype=torch.float64).expand(1), points @ A

    def metric(gradients):
        return gradients / 50

    there = minimise(evaluate, start, metric=metric, tolerance=0.0, max_steps=3).points
    failing = range(len(seen), len(seen) + TRIALS)
    seen.clear()
    minimise(evaluate, start, metric=metric, tolerance=0.0, max_steps=5)
    assert_close(seen[failing.stop], there - metric(there @ A))
