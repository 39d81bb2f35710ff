"""Second derivatives of losses in a few outputs, by whatever takes least, against the matrices."""

import pytest
import torch
from torch import nn
from torch.func import hessian, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.curvature import heads
from influence_dag.curvature.layered import LayeredNetwork
from influence_dag.curvature.layered_products import LayeredBatch
from influence_dag.objective.objective import Objective, Rows

F64 = torch.float64


def coupled(output, target):
    return F.cross_entropy(output, target, reduction="none") + output.sum(dim=1) ** 4


def sometimes_coupled(output, target):
    """Outputs meet in rows where their sum is positive."""
    return ((output - target) ** 2).sum(dim=1) + output.sum(dim=1).relu() ** 3


def separate(output, target):
    return ((output - target) ** 4).sum(dim=1)


CASES = {
    "softmax": (heads.SoftmaxHead, "cross_entropy", 3),
    "mean squares": (heads.DiagonalHead, "mse", 3),
    "fourth powers": (heads.DiagonalHead, separate, 20),
    "some rows": (heads.FewOutputsHead, sometimes_coupled, 2),
    "few outputs": (heads.FewOutputsHead, coupled, 5),
    "more outputs": (heads.WrittenHead, coupled, 20),
}


@pytest.mark.parametrize("case", CASES)
def test_a_head_multiplies_with_the_loss_s_second_derivatives(case):
    kind, loss, outputs = CASES[case]
    torch.manual_seed(0)
    objective = Objective(nn.Sequential(nn.Linear(4, outputs)).to(F64), loss)
    classes = loss in ("cross_entropy", coupled)
    target = torch.randint(outputs, (6,)) if classes else torch.randn(6, outputs, dtype=F64)
    rows = Rows(torch.randn(6, 4, dtype=F64), target)
    network = LayeredNetwork.of(objective, rows)
    assert network is not None
    batch = LayeredBatch.of(network, network.run(rows))
    assert type(batch.head) is kind

    z = objective.outputs(objective.params, rows.x)
    matrices = vmap(hessian(lambda z, y: objective.loss(z[None], y[None]).sum()))(z, target)
    moves, some = torch.randn(3, outputs, 6, dtype=F64), slice(2, 6)
    expected = torch.einsum("ncd,kdn->kcn", matrices[some], moves[..., some])
    found = batch.head.product(
        moves[..., some].clone(), some, torch.empty(3, outputs, 4, dtype=F64)
    )
    assert_close(found, expected)
