"""The delta alone: what the small network can do without any subscription."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchsnow.methods.presets import PoolTraining, Preset
from torchsnow.methods.snow import Snow
from torchsnow.source.source import Source

_ALONE = Preset(
    {"taps": (), "head_taps": (), "head_last": False},
    PoolTraining(start="equal", head_start="equal", probe=False, head="joint"),
)


def make_scratch(source: Source, num_classes: int, seed: int, changes: Mapping[str, Any]) -> Snow:
    """A delta of the source's shape that reads nothing but the image."""
    alone = _ALONE.changed(changes)
    return Snow(source, alone.spec(num_classes), alone.pools, seed, "scratch")
