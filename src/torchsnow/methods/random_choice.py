"""SNOW whose subscription is drawn once and never learned: does learning the choice matter?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchsnow.methods.presets import PRESETS
from torchsnow.methods.snow import Snow
from torchsnow.source.source import Source


def make_random(source: Source, num_classes: int, seed: int, changes: Mapping[str, Any]) -> Snow:
    """The default preset in all but the choice: random and fixed, of the layers' channels and of the head's values."""
    drawn = PRESETS["default"].changed(
        {"start": "random", "head_start": "random", "learned": False, "sigma": 0.0, **changes}
    )
    return Snow(source, drawn.spec_for(source, num_classes), drawn.pools, seed, "random")
