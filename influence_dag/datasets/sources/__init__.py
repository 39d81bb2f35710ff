"""Files and data sets as they are: named arrays, and how to speak of one of their rows.

Every format comes out as a `Source`; what a study demands of it is checked in `datasets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
