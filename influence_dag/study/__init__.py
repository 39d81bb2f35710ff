"""Every setting of a study, its file, and the code that it names; neither torch nor Dagster."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
