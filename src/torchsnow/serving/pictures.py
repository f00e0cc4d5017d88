"""From the bytes that a client sent to the tensors that tasks read; nothing is decoded before it was measured."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from torchsnow.data import eval_transform, read_image
from torchsnow.data.images import format_of
from torchsnow.errors import DataError
from torchsnow.serving.picture_parts import parts_problem
from torchsnow.serving.refusal import Refusal
from torchsnow.source import InputConfig

FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_NAME_CHARACTERS = 80


class Picture(NamedTuple):
    """A picture as a client sent it: the content of a file, and what to call it in messages."""

    content: bytes
    called: str


def picture(content: bytes, name: str | None, number: int) -> Picture:
    """A picture, called by the client's name for it, or else by its number in the request, from 0."""
    return Picture(content, name[-_MAX_NAME_CHARACTERS:] if name else f"number {number + 1}")


def decode(
    content: bytes, sizes: Iterable[int], called: str, config: InputConfig, max_pixels: int
) -> dict[int, Tensor]:
    """A picture as tensors (3, S, S), as at evaluation, for every image size S in pixels.

    Raises Refusal (415) for anything but JPEG, PNG and WebP, and (422) for a picture that is damaged, too large, made
    of too many parts, or of a shape that cannot be used; the words name it as it is `called`.
    """
    kind = format_of(content[:16])
    if kind not in FORMATS:
        raise Refusal(415, "not_an_image", f"the image {called} is no JPEG, PNG or WebP picture")
    problem = parts_problem(content, kind)
    if problem is not None:
        raise Refusal(422, "bad_image", f"cannot read the image {called}: {problem}")
    try:
        file = io.BytesIO(content)
        file.name = called
        image = read_image(file, max_pixels)
        return {size: eval_transform(config, size)(image) for size in sizes}
    except DataError as error:
        raise Refusal(422, "bad_image", str(error)) from error
