"""From the bytes that a client sent to pixels, in a process that can be killed, as a thread cannot, and may crash.

Nothing is decoded before its size and its parts are known: decoders take time and memory for every one. On stdin of
the process comes a line of JSON and the bytes of a picture, on stdout goes a line of JSON and its pixels. Nothing is
pickled, so a decoder that a picture has taken over can tell the server nothing but pixels and words.
"""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple

from torchsnow.data.formats import FORMATS, PREFIX_BYTES, format_of
from torchsnow.data.images import Cut, cut, read_image
from torchsnow.errors import DataError
from torchsnow.io.shortage import shortage
from torchsnow.serving.api_error import ApiError, api_error_of
from torchsnow.serving.logs import log_fault, write_logs

_JPEG_LIMITS = {
    "scans": 100,  # each is a pass over all of the pixels; progressive pictures have about ten
    "markers": 5_000,  # 32 MiB of the longest segments are 500
    "loose bytes": 2**16,  # before the first scan and in no segment: Pillow looks at each by itself
}
_MAX_CHUNKS = 20_000  # of a PNG or WebP: 32 MiB in the 8 KiB that many writers choose are 4,096
_MAX_BLOCKS = 20_000  # of a GIF before its first picture, and their parts
_MAX_TILES = 20_000  # or strips, of a TIFF
_MAX_ENTRIES = 4_096
_MAX_NUMBERS = 200_000  # of any other entry of a TIFF: a map of 16-bit colours has 196,608

# A marker that is not part of a scan's data: no stuffed zero, no restart, no filling.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_WITH_SEGMENT = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8})
_SCAN, _END = 0xDA, 0xD9
_TILE_TAGS = (273, 279, 324, 325)  # where the strips or tiles are, and how long
_BYTE_TYPES = (1, 2, 6, 7)


def parts_problem(content: bytes, kind: str) -> str | None:
    """Why a picture has too many parts to be decoded, known in one look at its bytes; None for a good one.

    `kind` is a name of `FORMATS`; a format whose parts cannot be many has no problem. Parts are followed as the
    decoders follow them: what is damaged, or lies about its length, has the parts that they would see.
    """
    problem = _PROBLEMS.get(kind)
    return None if problem is None else problem(content)


def _jpeg_problem(content: bytes) -> str | None:
    counts = dict.fromkeys(_JPEG_LIMITS, 0)
    for marker, loose in _markers(content):
        if counts["scans"]:
            if marker == _END:  # before a scan, Pillow reads on
                return None
        else:
            counts["loose bytes"] += loose
        counts["markers"] += 1
        counts["scans"] += marker == _SCAN
        for parts, limit in _JPEG_LIMITS.items():
            if counts[parts] > limit:
                return _many(parts, limit)
    return None


def _markers(content: bytes) -> Iterator[tuple[int | None, int]]:
    """Every marker of a JPEG, then None if it has no end, each with how many bytes stand before it in no segment."""
    at = 2
    while at < len(content):
        found = _MARKER.search(content, at)
        if found is None:
            yield None, len(content) - at
            return
        marker = content[found.start() + 1]
        yield marker, found.start() - at
        at = found.end()
        if marker in _WITH_SEGMENT:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))


def _png_problem(content: bytes) -> str | None:
    at = 8
    for _ in range(_MAX_CHUNKS):
        head = content[at : at + 8]
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        at += 12 + int.from_bytes(head[:4], "big")
    return _many("chunks", _MAX_CHUNKS)


def _webp_problem(content: bytes) -> str | None:
    at, end = 12, min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            return None
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return _many("chunks", _MAX_CHUNKS)


def _gif_problem(content: bytes) -> str | None:
    at, inside = 13 + _gif_colours_bytes(content[10:11]), False
    for _ in range(_MAX_BLOCKS):
        head = content[at : at + 1]
        if not head or (not inside and head in b",;"):  # the first picture, or the end
            return None
        if inside:
            at, inside = at + 1 + head[0], head != b"\0"
        else:  # Pillow looks at loose bytes one by one
            at, inside = at + (2 if head == b"!" else 1), head == b"!"
    return _many("blocks", _MAX_BLOCKS)


def _gif_colours_bytes(flags: bytes) -> int:
    return 3 * 2 ** (1 + (flags[0] & 7)) if flags and flags[0] & 0x80 else 0


def _tiff_problem(content: bytes) -> str | None:
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    width = 8 if int.from_bytes(content[2:4], order) == 43 else 4  # of an offset; BigTIFF has the long ones

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    at, of_count = number(width, width), 8 if width == 8 else 2
    if (num_entries := number(at, of_count)) > _MAX_ENTRIES:
        return _many("entries", _MAX_ENTRIES)
    for _ in range(num_entries):
        entry, at = at + of_count, at + 4 + 2 * width
        count = number(entry + 4, width)
        if count > _MAX_TILES and number(entry, 2) in _TILE_TAGS:
            return _many("strips or tiles", _MAX_TILES)
        if count > _MAX_NUMBERS and number(entry + 2, 2) not in _BYTE_TYPES:
            return _many("numbers in one entry", _MAX_NUMBERS)
    return None


_PROBLEMS: Mapping[str, Callable[[bytes], str | None]] = {
    "JPEG": _jpeg_problem,
    "PNG": _png_problem,
    "WEBP": _webp_problem,
    "GIF": _gif_problem,
    "TIFF": _tiff_problem,
}


def _many(parts: str, limit: int) -> str:
    return f"it has more than {limit} {parts}; save it again"


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
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_FAILED = "this image could not be decoded; the server's log says why"


def main() -> None:
    """Decode until stdin ends."""
    for stop in STOP_SIGNALS:  # they may be meant for the whole group, but the server has to drain
        signal.signal(stop, signal.SIG_IGN)
    write_logs()
    format_of(b"")  # loads Pillow's readers now rather than for the first picture
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    replies.write(READY)
    replies.flush()
    while line := requests.readline():
        given = json.loads(line)
        # Should the server be gone, and nobody there to kill this process, it ends all the same.
        signal.alarm(given["seconds"])
        _answer(given, requests.read(given["bytes"]), replies)
        signal.alarm(0)


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
