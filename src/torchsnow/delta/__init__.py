"""The delta: the small network of one task, derived from the source's graph."""

from torchsnow.delta.delta import Delta
from torchsnow.delta.spec import DeltaSpec

__all__ = ["Delta", "DeltaSpec"]
