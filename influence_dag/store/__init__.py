"""Versioned arrays: layouts, plans, drafts, versions, by backend; plain Zarr for who reads them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
