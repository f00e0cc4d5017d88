"""Pictures of what trained tasks subscribe to."""

from torchsnow.visualize.page import Visualization

__all__ = ["Visualization"]
