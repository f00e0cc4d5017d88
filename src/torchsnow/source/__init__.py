"""The source: a frozen pretrained CNN that gives its taps in one pass."""

from torchsnow.source.config import Framing, InputConfig
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.load import BUNDLED, PACKAGES, load_source, make_source
from torchsnow.source.source import Precision, Source
from torchsnow.source.taps import Tap

__all__ = [
    "BUNDLED",
    "PACKAGES",
    "FeatureMaps",
    "Framing",
    "InputConfig",
    "Precision",
    "Request",
    "Source",
    "Tap",
    "load_source",
    "make_source",
]
