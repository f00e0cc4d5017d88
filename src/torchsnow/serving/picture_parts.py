"""The parts of a picture's file, counted before anything decodes it: decoders take time and memory for every one."""

from __future__ import annotations

import re
from collections.abc import Iterator

_JPEG_LIMITS = {
    "scans": 100,  # each is a pass over all of the pixels; progressive pictures have about ten
    "markers": 5_000,  # 32 MiB of the longest segments are 500
    "loose bytes": 2**16,  # before the first scan and in no segment: Pillow looks at each by itself
}
_MAX_CHUNKS = 20_000  # of a PNG or WebP: 32 MiB in the 8 KiB that many writers choose are 4,096

# A marker that is not part of a scan's data: no stuffed zero, no restart, no filling.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_WITH_SEGMENT = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8})
_SCAN, _END = 0xDA, 0xD9


def parts_problem(content: bytes, kind: str) -> str | None:
    """Why a picture has too many parts to be decoded, known in one look at its bytes; None for a good one.

    `kind` is JPEG, PNG or WEBP. Parts are followed as the decoders follow them: what is damaged, or lies about its
    length, has the parts that they would see.
    """
    return {"JPEG": _jpeg_problem, "PNG": _png_problem, "WEBP": _webp_problem}[kind](content)


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


def _many(parts: str, limit: int) -> str:
    return f"it has more than {limit} {parts}; save it anew"
