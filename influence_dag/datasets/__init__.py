"""A study's rows: files and data sets of people, checked, split, and on axes with slots."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
