"""The part of a picture that a network sees at evaluation, with nothing but Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image


class Cut(NamedTuple):
    """Both sides ("squash"), the shorter one ("center") or the longer one ("border", filled up with the colour `fill`)
    are resized to `resize_size` pixels, with Pillow's filter number `resample`; of that, the centre of `size` x `size`
    pixels is kept. `transforms.cut_of` says which cut a source wants."""

    size: int
    resize_size: int
    crop_mode: str
    resample: int
    fill: Sequence[int] = (0, 0, 0)


def cut(image: Image.Image, how: Cut) -> Image.Image:
    """What `eval_transform` sees of an image, to the last bit, before it becomes a tensor."""
    width, height = image.size
    resized = (how.resize_size, how.resize_size)
    if how.crop_mode == "border":
        resized = within(width, height, how.resize_size)
    if how.crop_mode == "center":
        shorter = min(width, height)
        resized = (int(how.resize_size * width / shorter), int(how.resize_size * height / shorter))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling(how.resample))
    if how.crop_mode == "border":
        square = Image.new("RGB", (how.resize_size, how.resize_size), tuple(how.fill))
        square.paste(image, ((how.resize_size - resized[0]) // 2, (how.resize_size - resized[1]) // 2))
        image, resized = square, square.size
    left, top = (round((side - how.size) / 2) for side in resized)
    return image.crop((left, top, left + how.size, top + how.size))


def within(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is resized to so many pixels."""
    longer = max(width, height)
    return max(1, side * width // longer), max(1, side * height // longer)
