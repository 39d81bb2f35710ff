"""Families of losses with a target at each position of a row."""

import torch
from adversary.layers import EITHER, RIGHT
from adversary.loss_formulas import (
    CLASSES,
    IGNORED,
    Loss,
    drawn_weights,
    labelled_mean,
    log_loss,
    squared,
)
from torch import nn
from torch.nn import functional as F


def _padded(draw, positions, lengths, kinds, *, ragged):
    labels = draw.labels(kinds)[:, None] + torch.arange(positions)
    labels = labels % kinds
    if ragged and lengths is not None:
        labels[torch.arange(positions) >= lengths[:, None]] = IGNORED
        if draw.chance(0.3):
            labels[draw.plain] = IGNORED  # a row without labels has no loss
    return labels


def labelled_positions(draw, width, positions, lengths):
    """A class at each position, some of them left out with -100: the named loss, and torch's."""
    outputs = width or CLASSES
    given = draw.one_of("cross_entropy", "cross_entropy", F.cross_entropy, nn.CrossEntropyLoss())
    ragged = draw.chance(0.7)
    labels = _padded(draw, positions, lengths, outputs, ragged=ragged)
    uneven = bool(((labels != IGNORED).sum(1) != positions).any())
    expect = EITHER if callable(given) and uneven else RIGHT
    note = f"{given if isinstance(given, str) else 'torch'} {uneven=}"
    return Loss(given, labelled_mean, labels, outputs, expect, note=note)


def weighted_positions(draw, width, positions, lengths):
    """Class weights at positions: each counts with its weight, a row is their mean."""
    outputs = width or CLASSES
    weight = drawn_weights(draw, 0.5, 4, outputs)
    labels = _padded(draw, positions, lengths, outputs, ragged=False)
    return Loss(
        nn.CrossEntropyLoss(weight=weight),
        lambda f, t: (weight.to(f)[t] * log_loss(f, t)).mean(),
        labels,
        outputs,
        note="module",
        hidden=lambda f, t: (weight.to(f)[t] * log_loss(f, t)).sum() / weight.to(f)[t].sum(),
    )


def own_positions(draw, width, positions, lengths):
    """A function of one's own that sums over the positions that are labelled."""
    outputs = width or CLASSES

    def given(f, t):
        values = F.cross_entropy(f, t, reduction="none", ignore_index=IGNORED)
        return values.sum(1) / f.shape[2]

    labels = _padded(draw, positions, lengths, outputs, ragged=True)
    return Loss(
        given,
        lambda f, t: (log_loss(f, t) * (t != IGNORED)).sum() / len(t),
        labels,
        outputs,
    )


def numbers_at_positions(draw, width, positions, lengths):
    outputs = width or CLASSES
    targets = draw.normal(draw.total, outputs, positions)
    given = draw.one_of("mse", nn.MSELoss())
    return Loss(given, squared, targets, outputs)
