"""What couples rows by less than float32's own looseness: seen in a copy in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from influence_dag.errors import ModelError
from influence_dag.losses import reduced_loss
from influence_dag.objective.objective import Objective, Rows


@pytest.fixture
def rows():
    return Rows(torch.randn(12, 4), torch.arange(12) % 3)


def root_of_squares(output, target):
    """Near the mean where rows' losses are near each other; its derivative is not."""
    return F.cross_entropy(0.03 * output, target, reduction="none").square().mean().sqrt()


def test_a_reduction_that_hardly_differs_from_the_mean_is_seen(rows):
    model = nn.Linear(4, 3)
    values = F.cross_entropy(0.03 * model(rows.x), rows.y, reduction="none")
    mean, root = values.mean(), root_of_squares(model(rows.x), rows.y)
    assert 2e-5 < ((root - mean) / mean).item() < 1e-3
    with pytest.raises(ModelError, match="the loss of a batch is"):
        Objective(model, reduced_loss(root_of_squares)).check(rows)


class Leaning(nn.Module):
    """Each row leans on the mean of its batch by a ten-thousandth."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x + 3e-4 * (x.mean(0) + 1))


def test_a_little_of_other_rows_is_seen(rows):
    with pytest.raises(ModelError, match="depends on the other rows"):
        Objective(Leaning(), "cross_entropy").check(rows)


class InFloat32(nn.Module):
    """As many normalisations do, whatever they are given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.linear(x).float()
        return (hidden * torch.rsqrt(hidden.square().mean(1, keepdim=True) + 1e-6)).to(x.dtype)


class OfOnePrecision(nn.Module):
    """Cannot be computed in float64."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.linear(x.float(), self.linear.weight, torch.ones(3))


@pytest.mark.parametrize("model", [InFloat32, OfOnePrecision, lambda: nn.Linear(4, 3)])
def test_models_that_keep_a_precision_of_their_own_are_fine(model, rows):
    objective = Objective(model(), "cross_entropy")
    objective.check(rows)
    assert next(objective.module.parameters()).dtype == objective.dtype == torch.float32
