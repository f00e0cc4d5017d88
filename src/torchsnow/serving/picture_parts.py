"""How many parts a picture has, before it is decoded: decoders take time and memory for every one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

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
_MAX_BOXES = 20_000  # of an AVIF, HEIF or JPEG 2000
_MAX_ITEMS_BYTES = 2**17  # of an AVIF or HEIF: the 48 tiles of a telephone's picture take 4,000
_MAX_SEGMENTS = 100_000  # of a JPEG 2000: a few for every part of a tile
_MAX_CODE_BLOCKS = 1_000_000  # a kilobyte of memory each: 50 megapixels in blocks of 32 x 32 have 200,000
_MAX_LEVELS = 32  # of resolution, as the format allows

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


def _items_problem(content: bytes) -> str | None:
    """Of AVIF and HEIF, whose decoders look for every item among all others."""
    for number, (kind, start, end) in enumerate(_boxes(content)):
        if number >= _MAX_BOXES:
            return _many("boxes", _MAX_BOXES)
        if kind == b"meta" and end - start > _MAX_ITEMS_BYTES:
            return _many("bytes that list its items", _MAX_ITEMS_BYTES)
    return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """What kind every box of a file is, and where its content begins and ends; those in the header of JPEG 2000 too."""
    at = 0
    while at + 8 <= len(content):
        size, kind, start = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        end = len(content) if size == 0 else max(start, at + size)
        yield kind, start, end
        at = start if kind == b"jp2h" else end


def _jpeg2000_problem(content: bytes) -> str | None:
    if content.startswith(b"\xff\x4f"):
        return _codestream_problem(content)
    for number, (kind, start, _) in enumerate(_boxes(content)):
        if number >= _MAX_BOXES:
            return _many("boxes", _MAX_BOXES)
        if kind == b"jp2c":
            return _codestream_problem(content[start:])
    return None


def _codestream_problem(content: bytes) -> str | None:
    """Of JPEG 2000, which may be cut into tiles, and these into blocks of a pixel each."""
    area, tiles, num_components = 0, 1, 1
    for number, (marker, segment) in enumerate(_segments(content)):
        if number >= _MAX_SEGMENTS:
            return _many("markers", _MAX_SEGMENTS)
        if marker == b"\xff\x51":
            right, bottom, left, top, *tile = (int.from_bytes(segment[i : i + 4], "big") for i in range(2, 26, 4))
            num_components = int.from_bytes(segment[34:36], "big")
            area = (right - left) * (bottom - top) * num_components
            tiles = -(-right // max(1, tile[0])) * -(-bottom // max(1, tile[1]))
            if tiles > _MAX_TILES:
                return _many("tiles", _MAX_TILES)
        layers, coding = 1, b""
        if marker == b"\xff\x52":
            layers, coding = int.from_bytes(segment[2:4], "big"), segment[5:]
        if marker == b"\xff\x53":  # of one component, but it may be there for each
            coding = segment[2 if num_components < 257 else 3 :]
        if coding and _num_blocks(coding, area, tiles * num_components, layers) > _MAX_CODE_BLOCKS:
            return _many("blocks", _MAX_CODE_BLOCKS)
    return None


def _segments(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The segments of a codestream of JPEG 2000 by marker, those between the data of its tiles too."""
    at, part_end = 2, 0
    while len(marker := content[at : at + 2]) == 2:
        if marker == b"\xff\x93":  # data up to the end of a part of a tile
            yield marker, b""
            if part_end <= at:
                return
            at = part_end
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker == b"\xff\x90":
            part_end = at + int.from_bytes(segment[2:6], "big")
        yield marker, segment
        at += 2 + max(2, length)


def _num_blocks(coding: bytes, area: int, tiles: int, layers: int) -> float:
    """Code blocks, precincts and the packets of these, as a coding style cuts an area of pixels at every resolution."""
    levels, (width, height), precincts = coding[0], coding[1:3].ljust(2, b"\0"), coding[5:]
    number = 0.0
    for level in range(min(levels, _MAX_LEVELS) + 1):
        both = precincts[level] if level < len(precincts) else 0xFF
        wide, high = both & 15, both >> 4
        share = area / 4 ** (levels - level)
        number += share / 2 ** (min(width + 2, wide) + min(height + 2, high))
        number += max(tiles, share / 2 ** (wide + high)) * layers
    return number


_PROBLEMS: Mapping[str, Callable[[bytes], str | None]] = {
    "JPEG": _jpeg_problem,
    "PNG": _png_problem,
    "WEBP": _webp_problem,
    "GIF": _gif_problem,
    "TIFF": _tiff_problem,
    "AVIF": _items_problem,
    "HEIF": _items_problem,
    "JPEG2000": _jpeg2000_problem,
}


def _many(parts: str, limit: int) -> str:
    return f"it has more than {limit} {parts}; save it again"
