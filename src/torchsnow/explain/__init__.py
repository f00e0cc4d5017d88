"""Pictures of what trained tasks subscribe to."""

from torchsnow.explain.page import Visualization

__all__ = ["Visualization"]
