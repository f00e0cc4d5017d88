"""From a picture to a source's input: exact at evaluation, augmented in training.

All of these take a picture: a PIL image of any mode, a NumPy array (H, W), (H, W, 3) or (H, W, 4) of one, or the uint8
tensor (3, H, W) of one that `prepare` has resized; all give the same, by the rules of `read_image`. Anything else is
a DataError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from torchsnow.data.images import Cut, in_grey_range, upright_rgb, within
from torchsnow.data.names import AUGMENTATIONS
from torchsnow.errors import DataError
from torchsnow.source.config import CROP_MODES, MAX_IMAGE_SIZE, Framing, InputConfig


def prepare(config: InputConfig, framing: Framing) -> Callable[[Image.Image], Image.Image]:
    """The resize that comes before everything random."""
    return cast(
        "Callable[[Image.Image], Image.Image]",
        v2.Compose([partial(_picture, framing.grey_range), _resize(config, framing)]),
    )


def eval_transform(config: InputConfig, framing: Framing) -> Callable[[Any], Tensor]:
    """Resize, crop, normalise, to a float tensor (3, S, S) with S pixels a side; see `Framing`.

    Raises DataError for a size below 1 or above `MAX_IMAGE_SIZE`, an unknown crop mode, and an interpolation that
    Pillow does not have.
    """
    return _pipeline(config, framing, [v2.CenterCrop(framing.image_size)])


def cut_of(config: InputConfig, framing: Framing) -> Cut:
    """The first half of `eval_transform`, as numbers: what `cut` does before `scale`. Raises DataError as that does."""
    resample = Image.Resampling[_interpolation(config).name.removesuffix("_EXACT")]
    colour = _mean_colour(config)
    return Cut(
        framing.image_size, _resize_size(config, framing), framing.crop_mode, resample, framing.grey_range, colour
    )


def scale(config: InputConfig) -> Callable[[Tensor], Tensor]:
    """The second half of `eval_transform`: uint8 pixels (..., 3, H, W) to normalised floats."""
    return cast("Callable[[Tensor], Tensor]", v2.Compose(_scaling(config)))


def train_transform(config: InputConfig, framing: Framing, augmentation: str) -> Callable[[Any], Tensor]:
    """The same with a random change, to a float tensor (3, S, S); all randomness is torch's global generator.

    `augmentation` is "none" (as at evaluation), "flip" (mirrored half of the time), "light" (mirrored, and cropped
    to 50% to 100% of the area) or "strong" (light, then one random change of colour, sharpness or geometry).
    Raises DataError for another one.
    """
    if augmentation not in AUGMENTATIONS:
        raise DataError(f"unknown augmentation {augmentation!r}; expected one of {', '.join(AUGMENTATIONS)}")
    image_size = framing.image_size
    steps: dict[str, list[Any]] = {
        "none": [v2.CenterCrop(image_size)],
        "flip": [v2.CenterCrop(image_size), v2.RandomHorizontalFlip()],
        "light": [_random_crop(image_size), v2.RandomHorizontalFlip()],
        "strong": [_random_crop(image_size), v2.RandomHorizontalFlip(), _random_change(config)],
    }
    return _pipeline(config, framing, steps[augmentation])


def _pipeline(config: InputConfig, framing: Framing, steps: list[Any]) -> Callable[[Any], Tensor]:
    # On a prepared tensor the resize finds its size reached and does nothing.
    resized = [partial(_picture, framing.grey_range), _resize(config, framing), v2.PILToTensor()]
    return cast("Callable[[Any], Tensor]", v2.Compose([*resized, *steps, *_scaling(config)]))


def _picture(grey_range: tuple[int, int], given: Any) -> Image.Image | Tensor:
    """A picture of any kind as an upright RGB one, or the uint8 tensor (..., 3, H, W) that it is."""
    if isinstance(given, Image.Image):
        if given.mode == "RGB" and not given.info and not given.getexif():
            return given
        return in_grey_range(upright_rgb(given), grey_range)
    if isinstance(given, Tensor):
        if given.dtype == torch.uint8 and given.ndim >= 3 and given.shape[-3] == 3:
            return given
        what = f"a {str(given.dtype).removeprefix('torch.')} tensor {tuple(given.shape)}"
    elif isinstance(given, np.ndarray):
        deep_grey = given.dtype in (np.uint16, np.int32) and given.ndim == 2
        is_picture = deep_grey or (given.dtype == np.uint8 and (given.ndim == 2 or given.shape[2:] in ((3,), (4,))))
        if is_picture and given.size:
            return in_grey_range(upright_rgb(Image.fromarray(given)), grey_range)
        what = f"a {given.dtype} array {given.shape}"
    else:
        what = f"a {type(given).__name__}"
    raise DataError(
        f"the transform was given {what}; expected a PIL image, a uint8 array (H, W, 3), or a uint8 tensor (3, H, W) "
        "of RGB pixels, which read_image and torchvision's pil_to_tensor give"
    )


def _scaling(config: InputConfig) -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]


def _resize(config: InputConfig, framing: Framing) -> Any:
    side = _resize_size(config, framing)
    if framing.crop_mode == "border":
        return partial(_bordered, side=side, interpolation=_interpolation(config), fill=_mean_colour(config))
    size = [side, side] if framing.crop_mode == "squash" else side
    return v2.Resize(size, interpolation=_interpolation(config))


def _bordered(picture: Any, side: int, interpolation: InterpolationMode, fill: list[int]) -> Any:
    """The picture with its longer side resized to `side` pixels, in the middle of a square."""
    height, width = v2.functional.get_size(picture)
    new_width, new_height = within(width, height, side)
    left, top = (side - new_width) // 2, (side - new_height) // 2
    resized = v2.functional.resize(picture, [new_height, new_width], interpolation)
    return v2.functional.pad(resized, [left, top, side - new_width - left, side - new_height - top], fill)


def _mean_colour(config: InputConfig) -> list[int]:
    """What is 0 once it is normalised, for red, green and blue in 0..255."""
    return [round(255 * mean) for mean in config.mean]


def _resize_size(config: InputConfig, framing: Framing) -> int:
    """To how many pixels a side is resized before the middle is cut out. Raises DataError as `eval_transform` does."""
    size, crop_mode, _ = framing
    if not 1 <= size <= MAX_IMAGE_SIZE:
        raise DataError(f"the image size must be at least 1 pixel, and at most {MAX_IMAGE_SIZE}, not {size}")
    if crop_mode not in CROP_MODES:
        raise DataError(f"unknown crop mode {crop_mode!r}; expected one of {', '.join(CROP_MODES)}")
    return framing.resize_size(config.crop_pct)


def _interpolation(config: InputConfig) -> InterpolationMode:
    try:
        return InterpolationMode(config.interpolation)
    except ValueError as error:
        known = ", ".join(mode.value for mode in InterpolationMode)
        raise DataError(f"unknown interpolation {config.interpolation!r}; expected one of {known}") from error


def _random_crop(image_size: int) -> Any:
    return v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BILINEAR)


def _random_change(config: InputConfig) -> Any:
    """One of fourteen changes at a random strength; corners that turn into view get the source's mean colour."""
    return v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=_mean_colour(config))
