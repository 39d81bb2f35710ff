"""Sums over rows, brought up to date by those that changed.

1 % of the rows change: theirs are subtracted and added again, against summing over all rows. Both
sides of a ratio in one process, processor seconds; `-s` prints them.
"""

import itertools

import pytest
import torch
from bench_derivatives import cpu_seconds
from torch import nn

from influence_dag.curvature import Hessian
from influence_dag.losses import cross_entropy
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import EKFAC, KFAC

NETWORKS = {
    "50,000 rows, softmax regression of 256 parameters": (50_000, [15, 16]),
    "20,000 rows, network of 2,410 parameters": (20_000, [64, 32, 10]),
}


def curvatures(n: int, widths: list[int]) -> tuple[Hessian, Hessian, Hessian]:
    """Of all rows, of 1 % as they were, and of these as they are now."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))[:-1]
    objective = Objective(network.double().eval(), cross_entropy)
    x, y = torch.randn(n, widths[0], dtype=torch.float64), torch.randint(widths[-1], (n,))
    before, changed = x.clone(), slice(0, n // 100)
    x[changed] += 0.5
    rows = (Rows(x, y), Rows(before[changed], y[changed]), Rows(x[changed], y[changed]))
    return tuple(Hessian(objective, each) for each in rows)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("n", "widths"), NETWORKS.values(), ids=NETWORKS)
def test_the_hessian(n, widths):
    everything, before, now = curvatures(n, widths)
    rebuilt = everything.dense_sum(everything.rows)
    stored = rebuilt - now.dense_sum(now.rows) + before.dense_sum(before.rows)

    def difference() -> torch.Tensor:
        return stored.sub(before.dense_sum(before.rows)).add_(now.dense_sum(now.rows))

    error = (difference() - rebuilt).abs().max() / rebuilt.abs().max()
    update, rebuild = (
        cpu_seconds(difference),
        cpu_seconds(lambda: everything.dense_sum(everything.rows)),
    )
    print(f"\n{update:.3f} of {rebuild:.3f} CPU s ({rebuild / update:.1f}x), error {error:.1e}")
    assert error < 1e-9
    assert update <= rebuild / 10


@pytest.mark.parametrize("method", [KFAC(), EKFAC()], ids=["kfac", "ekfac"])
def test_kronecker_factors(method):
    everything, before, now = curvatures(20_000, [64, 128, 10])
    stored = method.factorize(everything).sums - method.sums(now) + method.sums(before)

    def difference() -> object:
        sums = stored - method.sums(before) + method.sums(now)
        return method.factorize(everything, sums=sums)

    update, rebuild = cpu_seconds(difference), cpu_seconds(lambda: method.factorize(everything))
    print(f"\n{update:.3f} of {rebuild:.3f} CPU s ({rebuild / update:.1f}x)")
    # EK-FAC's corrected eigenvalues need a pass over all rows in the new eigenbasis.
    assert update <= rebuild / (10 if isinstance(method, KFAC) else 1)
