"""The part of a picture that a network sees at evaluation, with nothing but Pillow."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image


class Cut(NamedTuple):
    """The shorter side is resized to `shorter_side` pixels, with Pillow's filter number `resample`; of that, the centre
    of `size` x `size` pixels is kept. Without a `shorter_side` the whole picture is resized to that square.
    `transforms.cut_of` says which cut a source wants."""

    size: int
    shorter_side: int | None
    resample: int


def cut(image: Image.Image, how: Cut) -> Image.Image:
    """What `eval_transform` sees of an image, to the last bit, before it becomes a tensor."""
    width, height = image.size
    resized = (how.size, how.size)
    if how.shorter_side is not None:
        shorter = min(width, height)
        resized = (int(how.shorter_side * width / shorter), int(how.shorter_side * height / shorter))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling(how.resample))
    left, top = (round((side - how.size) / 2) for side in resized)
    return image.crop((left, top, left + how.size, top + how.size))
