"""Losses: named ones, losses of positions, and any reduced loss as one value a row."""

from influence_dag.losses.named import (
    IGNORED,
    LOSSES,
    LossFunction,
    bce_with_logits,
    cross_entropy,
    mse,
    next_token,
    per_sample_loss,
)
from influence_dag.losses.reduced import ReducedLoss, ignored_class, likelihood_of, reduced_loss

__all__ = [
    "IGNORED",
    "LOSSES",
    "LossFunction",
    "ReducedLoss",
    "bce_with_logits",
    "cross_entropy",
    "ignored_class",
    "likelihood_of",
    "mse",
    "next_token",
    "per_sample_loss",
    "reduced_loss",
]
