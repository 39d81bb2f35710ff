"""Methods for `(H + λI)⁻¹ g`: exact, iterative, low rank, Kronecker-factored."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
