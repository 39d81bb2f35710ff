"""The kernels on one block: up-weighting and perturbation influences, of inputs and positions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
