"""The source: a frozen pretrained CNN that gives its taps in one pass."""

import lazy_loader

# Loaded at first use, as __init__.pyi names it: what needs no torch need not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
