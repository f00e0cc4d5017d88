"""Side-tuning: a small network next to the source, added to its final features, without any subscription.

Zhang et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks", ECCV 2020. The delta is
narrower than the source, so the two are added behind the last layer's weights, where the logits of both are summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchsnow.methods.presets import PoolTraining, Preset
from torchsnow.methods.snow import Snow
from torchsnow.source.source import Source

_SIDE = Preset(
    {"taps": (), "head_taps": (), "head_last": True, "head_divisor": 1},
    PoolTraining(start="equal", head_start="equal", learned=False, sigma=0.0, probe=False, head="joint"),
)


def make_side(source: Source, num_classes: int, seed: int, changes: Mapping[str, Any]) -> Snow:
    """A delta that reads the image, whose head reads all of the source's last features as well."""
    side = _SIDE.changed(changes)
    return Snow(source, side.spec(num_classes), side.pools, seed, "side")
