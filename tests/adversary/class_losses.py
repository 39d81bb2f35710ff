"""Families of losses of classes; formulas of one row stand beside what the package is given."""

from functools import partial

import torch
from adversary.layers import EITHER, RIGHT
from adversary.loss_formulas import CLASSES, Loss, drawn_labels, drawn_weights, log_loss, smoothed
from torch import nn
from torch.nn import functional as F


def classes(draw, width, *_):
    forms = {
        "cross_entropy": "cross_entropy",
        "functional": F.cross_entropy,
        "module": nn.CrossEntropyLoss(),
        "rows": partial(F.cross_entropy, reduction="none"),
        "lambda": lambda f, t: F.cross_entropy(f, t),
        "log-softmax": lambda f, t: F.nll_loss(f.log_softmax(1), t),
    }
    form = draw.one_of(*forms)
    given = forms[form]
    return Loss(given, log_loss, drawn_labels(draw, width), width or CLASSES, note=form)


def smoothed_classes(draw, width, *_):
    outputs = width or CLASSES
    weight = draw.one_of(None, drawn_weights(draw, 0.5, 4, outputs))
    given = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2)
    formula = partial(smoothed, amount=0.2, weight=weight)
    return Loss(given, formula, drawn_labels(draw, width), outputs, note=f"{weight is not None=}")


def class_weights(draw, width, *_):
    """Weights that the loss says it has, or one value a row."""
    outputs = width or CLASSES
    weight = drawn_weights(draw, 0.5, 10, outputs)
    form = draw.one_of("module", "nll module", "rows")
    forms = {
        "module": nn.CrossEntropyLoss(weight=weight),
        "nll module": _LogSoftmaxNLL(weight),
        "rows": _Weighted(weight, "none"),
    }
    return Loss(
        forms[form],
        lambda f, t: weight.to(f)[t] * log_loss(f, t),
        drawn_labels(draw, width),
        outputs,
        expect=EITHER if form == "nll module" else RIGHT,
        note=form,
    )


class _LogSoftmaxNLL(nn.NLLLoss):
    def forward(self, output, target):
        return super().forward(output.log_softmax(1), target)


class _Weighted:
    """A weighted cross-entropy that does not say so."""

    def __init__(self, weight, reduction="mean"):
        self.hidden, self.reduction = weight, reduction

    def __call__(self, output, target):
        hidden = self.hidden.to(output)
        return F.cross_entropy(output, target, weight=hidden, reduction=self.reduction)


class _WrappingModule(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=weight)

    def forward(self, output, target):
        return self.inner(output, target)


def hidden_class_weights(draw, width, *_):
    """Class weights inside a function, a partial, a module of one's own: reduced by torch."""
    outputs = width or CLASSES
    weight = torch.tensor([1.0, 5.0, 25.0, 2.0, 9.0], dtype=draw.dtype)[:outputs]
    forms = {
        "object": _Weighted(weight),
        "lambda": lambda f, t: F.cross_entropy(f, t, weight=weight.to(f)),
        "partial": partial(F.cross_entropy, weight=weight),
        "own module": _WrappingModule(weight),
    }
    form = draw.one_of(*forms)
    formula = lambda f, t: weight.to(f)[t] * log_loss(f, t)  # noqa: E731
    return Loss(forms[form], formula, drawn_labels(draw, width), outputs, expect=EITHER, note=form)


def probabilities(draw, width, *_):
    outputs = width or CLASSES
    targets = draw.normal(draw.total, outputs).softmax(1)
    given = draw.one_of("cross_entropy", F.cross_entropy)
    return Loss(
        given,
        lambda f, t: (t * (torch.logsumexp(f, 0) - f)).sum(),
        targets,
        outputs,
        expect=RIGHT if callable(given) else EITHER,
    )


def odd_labels(draw, width, *_):
    """Labels in other dtypes and shapes than torch's own."""
    labels = drawn_labels(draw, width)
    forms = {
        "int32": labels.int(),
        "uint8": labels.byte(),
        "bool": labels.bool(),
        "whole floats": labels.float(),
        "(n, 1)": labels[:, None],
    }
    form = draw.one_of(*forms)
    given = draw.one_of("cross_entropy", F.cross_entropy, nn.CrossEntropyLoss())
    return Loss(
        given,
        lambda f, t: log_loss(f, t.reshape(())),
        forms[form],
        width or CLASSES,
        expect=EITHER,
        note=f"{form} {given if isinstance(given, str) else 'torch'}",
    )
