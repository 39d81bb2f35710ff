"""The loss as a function of θ: rows, modules and how they are fitted, what is checked of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
