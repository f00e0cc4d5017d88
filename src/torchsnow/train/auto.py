"""Settings that follow from the images: sizes and epochs for somebody who gave only a folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import median

from torchsnow.data import Example, Splits, shorter_side
from torchsnow.train.settings import TrainSettings

AUTO = ("image_size", "batch_size", "epochs", "lr")
"""The settings that can be chosen, in the order in which they are: each may depend on those before."""
LEAST_IMAGE_SIZE = 64  # pixels: below, little is left after a network's strides
TARGET_STEPS = 2_000
LEAST_EPOCHS, MOST_EPOCHS = 5, 60
_SIZE_STEP = 32  # pixels: the whole stride of nearly every network
_MAX_SAMPLED = 200  # images
_BATCH_SIZES = (32, 16, 8)
_LEAST_STEPS = 8  # in an epoch


def auto_sizes(
    settings: TrainSettings, names: Collection[str], splits: Splits, source_size: int, stored: bool = False
) -> tuple[TrainSettings, dict[str, str]]:
    """The settings with image size, batch size and epochs chosen where `names` has them, and why by name.

    `source_size` is the side of the images that the source was made for, in pixels; `stored` says that training is
    from stored features. Raises DataError when an image
    can no longer be read.
    """
    why: dict[str, str] = {}
    if "image_size" in names:
        size, why["image_size"] = auto_image_size(splits.train, source_size)
        settings = replace(settings, image_size=size)
    if "batch_size" in names:
        batch_size, why["batch_size"] = auto_batch_size(len(splits.train))
        settings = replace(settings, batch_size=batch_size)
    if "epochs" in names:
        epochs, why["epochs"] = auto_epochs(len(splits.train), settings.batch_size, stored)
        settings = replace(settings, epochs=epochs)
    return settings, why


def auto_image_size(examples: Sequence[Example], source_size: int) -> tuple[int, str]:
    """The images' own size: the median of their shorter sides, to a multiple of 32, from 64 to the source's own size.

    It is taken from at most 200 images, evenly spaced, of which only the headers are read.
    """
    sampled = examples[:: math.ceil(len(examples) / _MAX_SAMPLED)]
    side = median(shorter_side(example.path) for example in sampled)
    near = _SIZE_STEP * math.floor(side / _SIZE_STEP + 0.5)
    size = min(max(near, LEAST_IMAGE_SIZE), source_size)
    return size, f"the images' shorter sides are {side:g} pixels (median), the source is made for {source_size}"


def auto_batch_size(num_images: int) -> tuple[int, str]:
    """32, or 16 or 8 where an epoch would otherwise have fewer than 8 steps."""
    size = next((size for size in _BATCH_SIZES if num_images >= _LEAST_STEPS * size), _BATCH_SIZES[-1])
    return size, f"{math.ceil(num_images / size)} steps an epoch over {num_images} training images"


def auto_epochs(num_images: int, batch_size: int, stored: bool = False) -> tuple[int, str]:
    """As many as 2,000 steps take, from 5 to 40; from stored features, which make epochs cheap, 8,000, 20 to 60."""
    target, least, most = (4 * TARGET_STEPS, 20, MOST_EPOCHS) if stored else (TARGET_STEPS, LEAST_EPOCHS, 40)
    steps = math.ceil(num_images / batch_size)
    epochs = min(max(round(target / steps), least), most)
    return epochs, f"{epochs * steps} steps; about {target} are wanted, in {least} to {most} epochs"
