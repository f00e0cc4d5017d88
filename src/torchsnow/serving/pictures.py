"""From the bytes that a client sent to pixels; nothing is decoded before its size and its parts are known."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import NamedTuple

from torchsnow.data.formats import FORMATS, PREFIX_BYTES, format_of
from torchsnow.data.images import Cut, cut, read_image
from torchsnow.errors import DataError
from torchsnow.io.shortage import shortage
from torchsnow.serving.picture_parts import parts_problem
from torchsnow.serving.refusal import Refusal, refusal_of

_MAX_NAME_CHARACTERS = 80


class Picture(NamedTuple):
    """A picture as a client sent it: the content of a file, and what to call it in messages."""

    content: bytes
    called: str


def picture(content: bytes, name: str | None, number: int) -> Picture:
    """A picture, called by the client's name for it, or else by its number in the request, from 0."""
    return Picture(content, name[-_MAX_NAME_CHARACTERS:] if name else f"number {number + 1}")


def decode(given: Picture, cuts: Sequence[Cut], max_pixels: int, formats: Collection[str] = FORMATS) -> list[bytes]:
    """The cuts of a picture, each as its rows of RGB pixels, S x S x 3 bytes. Needs no torch: see `decode_process`.

    Raises Refusal (415) for anything but these formats, by default all that images for training may be in, and (422)
    for a picture that is damaged, too large, made of too many parts, or of a shape that cannot be used; the words name
    it as it is `called`.
    """
    kind = format_of(given.content[:PREFIX_BYTES])
    if kind is None or kind not in formats:
        raise Refusal(415, "not_an_image", f"the image {given.called} is no {' or '.join(formats)} picture")
    problem = parts_problem(given.content, kind)
    if problem is not None:
        raise Refusal(422, "bad_image", f"cannot read the image {given.called}: {problem}")
    try:
        file = io.BytesIO(given.content)
        file.name = given.called
        image = read_image(file, max_pixels)
    except DataError as error:
        raise refusal_of(shortage(error)) or Refusal(422, "bad_image", str(error)) from error
    return [cut(image, how).tobytes() for how in cuts]
