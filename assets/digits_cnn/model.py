"""A convolutional digits classifier: 1 → 8 → 16 channels, pooling, 10 classes (p = 1,898)."""

from torch import nn


def build() -> nn.Module:
    """8 × 8 images in, one logit a class out. Smooth throughout: its Hessian sees all of it."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),  # the data has rows and columns, a convolution wants channels too
        nn.Conv2d(1, 8, 3),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
