"""Errors relative to what rounding is relative to."""

import torch

# Rows that are this much smaller than the largest are rounding of it.
FLOOR = {torch.float64: 1e-4, torch.float32: 1e-3}


def by_pair(found, factors, gradients):
    scale = factors.norm(dim=1)[:, None] * gradients.norm(dim=1)
    return worst((found.double() - factors @ gradients.T).abs(), scale, floor_of(found))


def by_row(found, wanted):
    return worst((found.double() - wanted).norm(dim=1), wanted.norm(dim=1), floor_of(found))


def floor_of(found):
    return FLOOR[found.dtype]


def worst(error, scale, floor=1e-9):
    """Relative to each entry's own scale, or to a small part of the largest."""
    least = floor * scale.max().clamp(min=1e-30)
    relative = error / scale.clamp(min=float(least))
    return float(relative.nan_to_num(nan=torch.inf).max())
