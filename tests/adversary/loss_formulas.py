"""What a family of losses returns, and formulas of one row.

`f` and `t` are the outputs and the target of one row, without its axis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from adversary.layers import RIGHT
from torch import Tensor
from torch.nn import functional as F

CLASSES, IGNORED = 3, -100


@dataclass(frozen=True)
class Loss:
    """`outputs`: numbers that the model has to put out a row (or a position).

    `given` is a name or a callable, `of_row` its formula. `convex` in the outputs, so that it has
    a Fisher. `hidden` is the formula where the package cannot see that there are class weights,
    which then are the loss's own affair.
    """

    given: str | Callable[..., Tensor]
    of_row: Callable[[Tensor, Tensor], Tensor]
    targets: Tensor
    outputs: int = CLASSES
    expect: str = RIGHT
    convex: bool = True
    note: str = ""
    hidden: Callable[[Tensor, Tensor], Tensor] | None = None


# Formulas -------------------------------------------------------------------------------------


def log_loss(f, t):
    """Negative log-likelihood of class t, at each position if there are several."""
    return torch.logsumexp(f, 0) - f.gather(0, t.clamp(min=0).long()[None])[0]


def labelled_mean(f, t):
    there = (t != IGNORED).to(f.dtype)
    return (log_loss(f, t) * there).sum() / there.sum().clamp(min=1)


def smoothed(f, t, amount, weight=None):
    weight = torch.ones_like(f) if weight is None else weight.to(f)
    logs = torch.logsumexp(f, 0) - f
    return (1 - amount) * weight[t] * logs[t] + amount / len(f) * (weight * logs).sum()


def squared(f, t):
    return (f.reshape(-1) - t.reshape(-1)).square().mean()


def binary(f, t, weight=None, positive=None):
    f, t = f.reshape(-1), t.reshape(-1).to(f.dtype)
    of_one, of_none = -F.logsigmoid(f), -F.logsigmoid(-f)  # softplus is linear beyond 20
    values = t * of_one * (1 if positive is None else positive.to(f)) + (1 - t) * of_none
    return (values * (1 if weight is None else weight.to(f))).mean()


def drawn_weights(draw, least, width, n):
    return (least + width * draw.uniform(n)).to(draw.dtype)


def drawn_labels(draw, width):
    return draw.labels(width or CLASSES)
