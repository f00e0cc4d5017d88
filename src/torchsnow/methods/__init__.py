"""Methods of transfer learning behind one contract: images to logits, and which parameters train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchsnow.errors import TrainingError
from torchsnow.methods.snow import PRESETS, PoolTraining, Preset, Snow, make_snow
from torchsnow.source.source import Source
from torchsnow.train.contract import Method

METHODS: Mapping[str, Callable[[Source, int, str, int], Method]] = {"snow": make_snow}
"""By name: (source, num_classes, preset, seed) -> method."""

__all__ = ["METHODS", "PRESETS", "PoolTraining", "Preset", "Snow", "make_method"]


def make_method(name: str, source: Source, num_classes: int, preset: str = "default", seed: int = 0) -> Method:
    """A method by name, ready for `torchsnow.train.fit`. Raises TrainingError for an unknown name or preset."""
    if name not in METHODS:
        raise TrainingError(f"there is no method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name](source, num_classes, preset, seed)
