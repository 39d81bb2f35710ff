"""Influence functions of PyTorch models as a persisted, labelled, incremental asset graph.

Names are resolved when first used, so that reading stored results does not import torch.
"""

import lazy_loader

from influence_dag.study.moved import install

install()
__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
