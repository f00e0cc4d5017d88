"""torchsnow: many small image-classification tasks on one frozen network, by channel pooling (SNOW)."""

from importlib.metadata import version

import lazy_loader

__version__ = version("torchsnow")
# Loaded at first use, as __init__.pyi names it: what needs no torch need not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
