"""From a picture to a source's input: exact at evaluation, augmented in training.

All of these take a PIL image or the uint8 tensor (3, H, W) of one that `prepare` has resized; both give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from torchsnow.data.cuts import Cut
from torchsnow.errors import DataError
from torchsnow.source.config import MAX_IMAGE_SIZE, InputConfig

AUGMENTATIONS = ("none", "flip", "light", "strong")


def prepare(config: InputConfig, image_size: int) -> Callable[[Image.Image], Image.Image]:
    """The resize that comes before everything random: the shorter side to floor(image_size / crop_pct) pixels."""
    return cast("Callable[[Image.Image], Image.Image]", _resize(config, image_size))


def eval_transform(config: InputConfig, image_size: int) -> Callable[[Any], Tensor]:
    """Resize, centre crop, normalise: what timm's evaluation transform does, to a float tensor (3, S, S).

    `image_size` is S in pixels. Raises DataError for a size below 1 or above `MAX_IMAGE_SIZE`, and an
    interpolation that Pillow does not have.
    """
    return _pipeline(config, image_size, [v2.CenterCrop(image_size)])


def cut_of(config: InputConfig, image_size: int) -> Cut:
    """The first half of `eval_transform`, as numbers: what `cut` does before `scale`. Raises DataError as that does."""
    resample = Image.Resampling[_interpolation(config).name.removesuffix("_EXACT")]
    return Cut(image_size, _shorter_side(config, image_size), resample)


def scale(config: InputConfig) -> Callable[[Tensor], Tensor]:
    """The second half of `eval_transform`: uint8 pixels (..., 3, H, W) to normalised floats."""
    return cast("Callable[[Tensor], Tensor]", v2.Compose(_scaling(config)))


def train_transform(config: InputConfig, image_size: int, augmentation: str) -> Callable[[Any], Tensor]:
    """The same with a random change, to a float tensor (3, S, S); all randomness is torch's global generator.

    `augmentation` is "none" (as at evaluation), "flip" (mirrored half of the time), "light" (mirrored, and cropped
    to 50% to 100% of the area) or "strong" (light, then one random change of colour, sharpness or geometry).
    Raises DataError for another one.
    """
    if augmentation not in AUGMENTATIONS:
        raise DataError(f"unknown augmentation {augmentation!r}; expected one of {', '.join(AUGMENTATIONS)}")
    steps: dict[str, list[Any]] = {
        "none": [v2.CenterCrop(image_size)],
        "flip": [v2.CenterCrop(image_size), v2.RandomHorizontalFlip()],
        "light": [_random_crop(config, image_size), v2.RandomHorizontalFlip()],
        "strong": [_random_crop(config, image_size), v2.RandomHorizontalFlip(), _random_change(config)],
    }
    return _pipeline(config, image_size, steps[augmentation])


def _pipeline(config: InputConfig, image_size: int, steps: list[Any]) -> Callable[[Any], Tensor]:
    # On a prepared tensor the resize finds its size reached and does nothing.
    resized = [_resize(config, image_size), v2.PILToTensor()]
    return cast("Callable[[Any], Tensor]", v2.Compose([*resized, *steps, *_scaling(config)]))


def _scaling(config: InputConfig) -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]


def _resize(config: InputConfig, image_size: int) -> Any:
    return v2.Resize(_shorter_side(config, image_size), interpolation=_interpolation(config))


def _shorter_side(config: InputConfig, image_size: int) -> int:
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise DataError(f"the image size must be at least 1 pixel, and at most {MAX_IMAGE_SIZE}, not {image_size}")
    return floor(image_size / config.crop_pct)


def _interpolation(config: InputConfig) -> InterpolationMode:
    try:
        return InterpolationMode(config.interpolation)
    except ValueError as error:
        known = ", ".join(mode.value for mode in InterpolationMode)
        raise DataError(f"unknown interpolation {config.interpolation!r}; expected one of {known}") from error


def _random_crop(config: InputConfig, image_size: int) -> Any:
    return v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BILINEAR)


def _random_change(config: InputConfig) -> Any:
    """One of fourteen changes at a random strength; corners that turn into view get the source's mean colour."""
    fill = [round(255 * mean) for mean in config.mean]
    return v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=fill)
