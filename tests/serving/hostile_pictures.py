"""Pictures that are small and valid, and made to be slow to decode."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def saved(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_chunks(number: int) -> bytes:
    """A PNG with so many empty chunks before its pixels."""
    content = saved(Image.new("L", (8, 8)))
    return content[:33] + chunk(b"prVt", b"") * number + content[33:]


def jpeg_of_markers(number: int) -> bytes:
    """A JPEG with so many empty comments before its pixels."""
    content = saved(Image.new("L", (8, 8)), "JPEG")
    return content[:2] + b"\xff\xfe\x00\x02" * number + content[2:]


def jpeg_of_scans(number: int, side: int = 1000) -> bytes:
    """A progressive JPEG whose last scan is there so many times."""
    content = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (number - content.count(b"\xff\xda")) + content[-2:]


def jpeg_with_loose_bytes(number: int) -> bytes:
    """A JPEG with so many bytes in no segment before its pixels."""
    content = saved(Image.new("L", (8, 8)), "JPEG")
    return content[:2] + b"\xff\xfe\x00\x02" + bytes(number) + content[2:]


def webp_of_chunks(number: int) -> bytes:
    """A WebP with so many empty chunks behind its pixels."""
    content = saved(Image.new("RGBA", (8, 8), (9, 9, 9, 9)), "WEBP", exif=b"Exif\0\0x") + b"prVt\0\0\0\0" * number
    return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]


def gif_of_blocks(number: int, parts: int = 0) -> bytes:
    """A GIF with so many comments, each of so many parts, before its first picture."""
    content = saved(Image.new("L", (8, 8)), "GIF")
    start = 13 + 3 * 2 ** (1 + (content[10] & 7))
    return content[:start] + (b"!\xfe" + b"\1x" * parts + b"\0") * number + content[start:]


def gif_with_loose_bytes(number: int) -> bytes:
    """A GIF with so many bytes in no block before its first picture."""
    content = gif_of_blocks(1)
    start = content.index(b"!\xfe\0")
    return content[:start] + b"x" * number + content[start:]


def tiff_of(tag: int, kind: int, count: int, big: bool = False, order: str = "<") -> bytes:
    """A TIFF whose only entry has so many values."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQQHHQQ", 43, 8, 0, 16, 1, tag, kind, count, 0) + bytes(8)
    return mark + struct.pack(order + "HIHHHII", 42, 8, 1, tag, kind, count, 0) + bytes(4)
