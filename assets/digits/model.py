"""The digits classifier: 64 pixels, 32 tanh units, 10 classes (p = 2,410)."""

from torch import nn


def build() -> nn.Module:
    """8 × 8 images in, one logit a class out."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
