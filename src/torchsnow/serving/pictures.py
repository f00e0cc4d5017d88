"""From the bytes that a client sent to pixels, in a process that can be killed, as a thread cannot, and may crash.

Nothing is decoded before its size and its parts are known: decoders take time and memory for every one. What a picture
takes all the same is limited. On stdin of the process comes a line of JSON and the bytes of a picture, on stdout goes a
line of JSON and its pixels. Nothing is pickled, so a decoder that a picture has taken over can tell the server nothing
but pixels and words.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torchsnow.data.formats import FORMATS, PREFIX_BYTES, format_of
from torchsnow.data.images import Cut, cut, read_image
from torchsnow.errors import DataError
from torchsnow.io.shortage import shortage
from torchsnow.serving.api_error import ApiError, api_error_of
from torchsnow.serving.logs import log_fault, write_logs
from torchsnow.serving.picture_parts import parts_problem

_MAX_NAME_CHARACTERS = 80


class Picture(NamedTuple):
    """A picture as a client sent it: the content of a file, and what to call it in messages."""

    content: bytes
    called: str


def picture(content: bytes, name: str | None, number: int) -> Picture:
    """A picture, called by the client's name for it, or else by its number in the request, from 0."""
    return Picture(content, name[-_MAX_NAME_CHARACTERS:] if name else f"number {number + 1}")


def decode(given: Picture, cuts: Sequence[Cut], max_pixels: int, formats: Collection[str] = FORMATS) -> list[bytes]:
    """The cuts of a picture, each as its rows of RGB pixels, S x S x 3 bytes. Needs no torch, for `main`.

    Raises ApiError (415) for anything but these formats, by default all that images for training may be in, and (422)
    for a picture that is damaged, too large, made of too many parts, or of a shape that cannot be used; the words name
    it as it is `called`.
    """
    if not given.content:
        raise ApiError(415, "not_an_image", f"the image {given.called} is empty")
    kind = format_of(given.content[:PREFIX_BYTES])
    if kind is None or kind not in formats:
        raise ApiError(415, "not_an_image", f"the image {given.called} is no {' or '.join(formats)} picture")
    problem = parts_problem(given.content, kind)
    if problem is not None:
        raise ApiError(422, "bad_image", f"cannot read the image {given.called}: {problem}")
    try:
        file = io.BytesIO(given.content)
        file.name = given.called
        image = read_image(file, max_pixels)
    except DataError as error:
        raise api_error_of(shortage(error)) or ApiError(422, "bad_image", str(error)) from error
    return [cut(image, how).tobytes() for how in cuts]


READY = b"ready\n"
_PIXEL_BYTES, _SPARE_BYTES = 32, 2**30
"""Of memory: for a pixel, of which the worst good pictures need 25, and for whatever else libraries want."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_FAILED = "this image could not be decoded; the server's log says why"


def main() -> None:
    """Decode until stdin ends."""
    for stop in STOP_SIGNALS:  # they may be meant for the whole group, but the server has to drain
        signal.signal(stop, signal.SIG_IGN)
    write_logs()
    format_of(b"")  # loads Pillow's readers now rather than for the first picture
    requests, replies, own_bytes = sys.stdin.buffer, sys.stdout.buffer, _memory_bytes()
    replies.write(READY)
    replies.flush()
    while line := requests.readline():
        given = json.loads(line)
        # Should the server be gone, and nobody there to kill this process, it ends all the same.
        signal.alarm(given["seconds"])
        _limit_memory(own_bytes + _PIXEL_BYTES * given["max_pixels"] + _SPARE_BYTES)
        _answer(given, requests.read(given["bytes"]), replies)
        signal.alarm(0)


def _memory_bytes() -> int:
    """The addresses that this process has, or 0 where the system does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _limit_memory(size_bytes: int) -> None:
    """Let a picture that wants more fail, before the system ends the server or its neighbours."""
    if _memory_bytes():
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes if most < 0 else min(size_bytes, most), most))


def _answer(given: dict[str, Any], content: bytes, replies: BinaryIO) -> None:
    pixels: list[bytes] = []
    refused: ApiError | None = None
    try:
        cuts = [Cut(*numbers) for numbers in given["cuts"]]
        pixels = decode(Picture(content, given["called"]), cuts, given["max_pixels"], given["formats"])
    except ApiError as error:
        refused = error
    except Exception as error:
        log_fault("a picture failed", error)
        refused = api_error_of(shortage(error)) or ApiError(500, "internal", _FAILED)
    api_error = refused and [refused.status, refused.code, refused.message]
    if refused and api_error and refused.retry_after_s is not None:
        api_error.append(refused.retry_after_s)
    replies.write(json.dumps(api_error, allow_nan=False).encode() + b"\n" + b"".join(pixels))
    replies.flush()
