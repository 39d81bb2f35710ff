"""Families of losses that a user writes, some of them no mean over rows."""

import torch
from adversary.layers import REFUSED
from adversary.loss_formulas import CLASSES, Loss, drawn_labels, log_loss
from torch import nn
from torch.nn import functional as F


def own_rows(draw, width, *_):
    """A function of one value a row; not convex in the outputs."""
    outputs = width or CLASSES
    form = draw.one_of("focal", "expectile", "margin")

    def focal(f, t):
        p = f.softmax(-1).gather(-1, t.long()[..., None])[..., 0]
        return -((1 - p) ** 2) * torch.log(p)

    def expectile(f, t):
        error = t.to(f) - f.sum(-1)
        return torch.where(error > 0, 0.8, 0.2) * error.square() + 0.1 * torch.cos(error)

    def margin(f, t):
        chosen = f.gather(-1, t.long()[..., None])[..., 0]
        return F.softplus(f.logsumexp(-1) - 2 * chosen) + 0.1 * f.square().mean(-1)

    function = {"focal": focal, "expectile": expectile, "margin": margin}[form]
    draw.scale = min(draw.scale, 10.0)  # log p of what is excluded is infinite
    targets = drawn_labels(draw, width)
    return Loss(function, function, targets, outputs, convex=False, note=form)


def gaussian(draw, width, *_):
    """A mean and a log variance for one target, reduced."""
    draw.scale = 1.0

    def formula(f, t):
        variance = f[1].exp().clamp(min=1e-6)
        return (torch.log(variance) + (f[0] - t).square() / variance) / 2

    def given(f, t):
        return F.gaussian_nll_loss(f[:, 0], t, f[:, 1].exp())

    return Loss(given, formula, draw.normal(draw.total), width or 2, convex=False)


def sums(draw, width, *_):
    given = draw.one_of(
        nn.CrossEntropyLoss(reduction="sum"), lambda f, t: len(f) * F.cross_entropy(f, t)
    )
    return Loss(given, log_loss, drawn_labels(draw, width), width or CLASSES)


def coupled(draw, width, *_):
    """Losses of a batch that are no mean over its rows."""
    form = draw.one_of("root", "hardest", "balanced", "centred rows", "ranks")

    def rows(f, t):
        return F.cross_entropy(f, t, reduction="none")

    def balanced(f, t):
        counts = torch.nn.functional.one_hot(t, f.shape[1]).sum(0).to(f)
        return (rows(f, t) / counts[t]).sum() / (counts > 0).sum()

    forms = {
        "root": lambda f, t: rows(f, t).square().mean().sqrt(),
        "hardest": lambda f, t: rows(f, t).topk((len(f) + 1) // 2).values.mean(),
        "balanced": balanced,
        "centred rows": lambda f, t: rows(f, t) - 0.1 * rows(f, t).mean(),
        "ranks": lambda f, t: (rows(f, t) * rows(f, t).softmax(0)).sum(),
    }
    labels = drawn_labels(draw, width)
    labels[: draw.rows // 2 + 1] = 0
    return Loss(
        forms[form],
        log_loss,
        labels,
        width or CLASSES,
        expect=REFUSED,
        note=form,
    )
