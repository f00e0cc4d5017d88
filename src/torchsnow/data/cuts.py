"""The part of a picture that a network sees at evaluation, with nothing but Pillow."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image


class Cut(NamedTuple):
    """Both sides ("squash") or the shorter one ("center") are resized to `resize_size` pixels, with Pillow's filter
    number `resample`; of that, the centre of `size` x `size` pixels is kept. `transforms.cut_of` says which cut a
    source wants."""

    size: int
    resize_size: int
    crop_mode: str
    resample: int


def cut(image: Image.Image, how: Cut) -> Image.Image:
    """What `eval_transform` sees of an image, to the last bit, before it becomes a tensor."""
    width, height = image.size
    resized = (how.resize_size, how.resize_size)
    if how.crop_mode == "center":
        shorter = min(width, height)
        resized = (int(how.resize_size * width / shorter), int(how.resize_size * height / shorter))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling(how.resample))
    left, top = (round((side - how.size) / 2) for side in resized)
    return image.crop((left, top, left + how.size, top + how.size))
