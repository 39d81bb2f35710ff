"""Losses: named ones, losses of positions, and any reduced loss as one value a row."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
