"""Last layer only (FO): a linear layer over the source's last features."""

from __future__ import annotations

from torchsnow.methods.linear import LinearMethod
from torchsnow.source.source import Source


def make_head(source: Source, num_classes: int, probe: bool) -> LinearMethod:
    """Trained from zero, or from the logistic regression over the same features (`probe`)."""
    return LinearMethod("head", source, num_classes, probe=probe)
