"""Families of losses of numbers: regressions, coins, counts."""

from functools import partial

import torch
from adversary.loss_formulas import Loss, binary, drawn_weights, squared
from torch import nn
from torch.nn import functional as F


def regression(draw, width, *_):
    outputs = width or draw.one_of(1, 1, 2)
    flat = outputs == 1 and draw.chance(0.5)
    targets = draw.normal(draw.total, *(() if flat else (outputs,)))
    # torch itself would broadcast (n, 1) against (n,).
    forms = {
        "mse": "mse",
        "module": "mse" if flat else nn.MSELoss(),
        "rows": lambda f, t: (f - t.reshape(f.shape)).square().mean(-1),
        "functional": lambda f, t: F.mse_loss(f, t.reshape(f.shape)),
    }
    form = draw.one_of(*forms)
    given = forms[form]
    note = f"{form} {tuple(targets.shape[1:])}"
    return Loss(given, squared, targets, outputs, note=note)


def robust(draw, width, *_):
    outputs = width or 2
    formula = {
        "huber": lambda e: torch.where(e.abs() < 1, e.square() / 2, e.abs() - 0.5),
        "smooth": lambda e: torch.where(e.abs() < 0.5, e.square(), e.abs() - 0.25),
        "absolute": torch.abs,
        "log-cosh": lambda e: F.softplus(2 * e) - e,
    }
    forms = {
        "huber": nn.HuberLoss(),
        "smooth": nn.SmoothL1Loss(beta=0.5),
        "absolute": nn.L1Loss(),
        "log-cosh": lambda f, t: (F.softplus(2 * (f - t)) - (f - t)).mean(),
    }
    form = draw.one_of(*forms)
    targets = 2 * draw.normal(draw.total, outputs)
    return Loss(forms[form], lambda f, t: formula[form](f - t).mean(), targets, outputs, note=form)


def binary_labels(draw, width, *_):
    outputs = width or draw.one_of(1, 1, 2)
    targets = (draw.uniform(draw.total, outputs) < 0.5).float()
    targets[: draw.plain] = 0
    if outputs == 1 and draw.chance(0.5):
        targets = targets[:, 0]
    given = (
        "bce_with_logits"
        if targets.ndim == 1
        else draw.one_of(
            "bce_with_logits", nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits
        )
    )
    if isinstance(given, str):
        targets = targets.to(draw.one_of(torch.float32, torch.int64, torch.bool, torch.int32))
    note = f"{targets.dtype} {tuple(targets.shape[1:])}"
    return Loss(given, binary, targets, outputs, note=note)


def weighted_binary(draw, width, *_):
    """Weights of outputs and of positives, as torch has them."""
    outputs = width or 2
    weight, positive = (drawn_weights(draw, 0.5, 3, outputs) for _ in range(2))
    targets = (draw.uniform(draw.total, outputs) < 0.5).float()
    form = draw.one_of("weight", "pos_weight", "both", "functional", "after sigmoid")
    if form == "after sigmoid":
        draw.scale = 1.0  # torch cuts the logarithm of what a sigmoid has rounded to 0
    weight = weight if form != "pos_weight" else None
    positive = positive if form in ("pos_weight", "both") else None
    forms = {
        "functional": lambda f, t: F.binary_cross_entropy_with_logits(f, t, weight.to(f)),
        "after sigmoid": lambda f, t: F.binary_cross_entropy(f.sigmoid(), t, weight.to(f)),
    }
    given = forms.get(form) or nn.BCEWithLogitsLoss(weight=weight, pos_weight=positive)
    formula = partial(binary, weight=weight, positive=positive)
    return Loss(given, formula, targets, outputs, note=form)


def counts(draw, width, *_):
    draw.scale = 1.0  # e to the power of the output
    outputs = width or 2
    targets = (3 * draw.uniform(draw.total, outputs)).floor()
    return Loss(nn.PoissonNLLLoss(), lambda f, t: (f.exp() - t * f).mean(), targets, outputs)
