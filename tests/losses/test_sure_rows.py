"""Gradients of rows that a model is sure of, in float32: 1 - p is nothing but rounding there."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influence_dag.losses import per_sample_loss, reduced_loss
from influence_dag.losses.positions import position_losses

SURE = torch.tensor([[20.0, 1.0, -3.0], [-2.0, 30.0, 0.5], [0.1, 0.2, 0.3], [-9.0, 2.0, 45.0]])
CLASSES, COINS = torch.tensor([0, 1, 2, 0]), (SURE > 1).float()
SEQUENCES = torch.stack([SURE, SURE.flip(1)], 2)
SOME = torch.tensor([[0, 2], [-100, 1], [1, 1], [-100, -100]])

CASES = {
    "cross_entropy": ("cross_entropy", SURE, CLASSES),
    "cross_entropy at positions": ("cross_entropy", SEQUENCES, SOME),
    "next_token": ("next_token", SEQUENCES, SOME),
    "torch's": (nn.CrossEntropyLoss(), SURE, CLASSES),
    "torch's, of weighted classes": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 3.0])),
        SURE,
        CLASSES,
    ),
    "torch's, with another class ignored": (
        partial(F.cross_entropy, ignore_index=2, reduction="sum"),
        SEQUENCES,
        SOME.clamp(min=0),
    ),
    "bce_with_logits": ("bce_with_logits", SURE, COINS),
    "torch's of coins": (nn.BCEWithLogitsLoss(), SURE, COINS),
}


def gradient(loss, output, target):
    point = output.detach().requires_grad_()
    values = loss(point, target)
    return values.detach(), torch.autograd.grad(values.sum(), point)[0]


@pytest.mark.parametrize(("loss", "output", "target"), CASES.values(), ids=CASES)
def test_values_and_gradients_have_all_their_digits(loss, output, target):
    own = per_sample_loss(loss) if isinstance(loss, str) else reduced_loss(loss)
    target64 = target.double() if target.is_floating_point() else target
    found, expected = gradient(own, output, target), gradient(own, output.double(), target64)
    for mine, precise in zip(found, expected, strict=True):
        assert_close(mine.double(), precise, rtol=3e-6, atol=0)
    if output.ndim == 3:
        terms = partial(position_losses, own)
        assert_close(terms(output, target).flatten(1).sum(1), found[0])
        assert_close(gradient(terms, output, target)[1], found[1])


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 3.0]).double()])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_they_are_torchs_in_float64(weight, scale):
    output = scale * SEQUENCES.double()
    loss = partial(F.cross_entropy, weight=weight, reduction="sum")
    mine = gradient(reduced_loss(loss), output, SOME)
    torchs = gradient(lambda f, y: loss(f, y, reduction="none").sum(1), output, SOME)
    for one, other in zip(mine, torchs, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "output", [torch.tensor([[1.5, -torch.inf, -torch.inf]]), torch.tensor([[0.3]])]
)
def test_a_class_without_another_has_neither_loss_nor_gradient(output):
    values, slope = gradient(per_sample_loss("cross_entropy"), output, torch.tensor([0]))
    assert values.tolist() == [0.0]
    assert not slope.any()
