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


def jpeg2000_of(side: int, tile: int, code_block: int = 4, precinct: int | None = None, layers: int = 1) -> bytes:
    """A JPEG 2000 without pixels: sizes of code blocks and precincts are powers of 2, less 2 for code blocks."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    size = segment(0x51, struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, 3) + bytes([7, 1, 1]) * 3)
    style = bytes([precinct is not None, 0]) + struct.pack(">H", layers) + bytes([1, 5, code_block, code_block, 0, 1])
    style += b"" if precinct is None else bytes([precinct * 17] * 6)
    return b"\xff\x4f" + size + segment(0x52, style) + segment(0x5C, b"\x40" + bytes([64] * 16))


def in_boxes(codestream: bytes, more: int = 0) -> bytes:
    """A JPEG 2000 as a file, with so many empty boxes in its header."""
    header = box(b"ihdr", struct.pack(">IIHBBBB", 40, 40, 3, 7, 7, 0, 0)) + box(b"free", b"") * more
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + box(b"jp2c", codestream)


def items_of(brand: bytes, number: int) -> bytes:
    """An AVIF or HEIF that lists so many items, and has none."""
    rows = b"".join(struct.pack(">HBH", i % 65_536, 1, 1) for i in range(number))
    properties = box(b"iprp", box(b"ipco", b"") + box(b"ipma", struct.pack(">II", 1, number) + rows))
    return box(b"ftyp", brand + b"\0\0\0\0mif1") + box(b"meta", b"\0\0\0\0" + properties)


def box(kind: bytes, content: bytes) -> bytes:
    """A box of the formats that are made of these."""
    return struct.pack(">I", len(content) + 8) + kind + content
