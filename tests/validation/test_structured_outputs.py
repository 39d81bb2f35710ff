"""Refits of models whose outputs are no tensor, or that go another way by what they see."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from influence_dag.objective.objective import Objective, Rows
from influence_dag.validation import datamodels, leave_one_out, refit

F64 = torch.float64
PENALTY = 0.5


def nll(mean, log_variance, y):
    return ((mean - y).square() * torch.exp(-log_variance) + log_variance).sum(1) / 2


class Plain(nn.Linear):
    def __init__(self):
        super().__init__(3, 2, dtype=F64)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    @staticmethod
    def loss(outputs, y):
        return nll(outputs[:, :1], outputs[:, 1:], y)


class Named(Plain):
    def forward(self, x):
        outputs = super().forward(x)
        return {"mean": outputs[:, :1], "log_variance": outputs[:, 1:], "scale": x.new_tensor(2.0)}

    @staticmethod
    def loss(outputs, y):
        return nll(outputs["mean"], outputs["log_variance"], y)


class Pair(Plain):
    def forward(self, x):
        return super().forward(x).split(1, dim=1)

    @staticmethod
    def loss(outputs, y):
        return nll(*outputs, y)


class Choosing(Plain):
    """As others that look at a row's values, not followed by `vmap`."""

    def forward(self, x):
        return super().forward(x) * (1.0 if float(x.abs().sum()) < 1e9 else 2.0)


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, width, generator=generator, dtype=F64) for width in (3, 1))
    return Rows(x, y), Rows(x[:4] + 0.1, y[:4])


def fitted(kind, rows):
    objective = Objective(kind(), kind.loss)
    return refit(objective, rows, rows.shares[None], weight_decay=PENALTY).member(0)


@pytest.mark.parametrize("kind", [Named, Pair, Choosing])
def test_rows_are_left_out_of_any_model(kind, rows):
    settings = {"weight_decay": PENALTY, "index": [0, 3, 7]}
    expected, found = (leave_one_out(fitted(k, rows[0]), *rows, **settings) for k in (Plain, kind))
    assert found.corrected is not None
    for name in ("predicted", "actual", "corrected"):
        assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-7)


@pytest.mark.parametrize("kind", [Named, Pair, Choosing])
def test_subsets_are_fitted_to_any_model(kind, rows):
    settings = {"weight_decay": PENALTY, "count": 6}
    expected, found = (datamodels(fitted(k, rows[0]), *rows, **settings) for k in (Plain, kind))
    assert_allclose(found.fits.values, expected.fits.values, atol=1e-4)
    assert found.scores["hessian"].pearson == pytest.approx(
        expected.scores["hessian"].pearson, abs=1e-3
    )
