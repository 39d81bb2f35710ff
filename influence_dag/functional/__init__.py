"""Influences in memory, from a module, a loss and data loaders, in a few calls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
