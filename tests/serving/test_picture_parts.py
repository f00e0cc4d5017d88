"""The parts of pictures are counted as decoders meet them, in little time, and good pictures have few."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from hostile_pictures import (
    box,
    chunk,
    gif_of_blocks,
    gif_with_loose_bytes,
    in_boxes,
    items_of,
    jpeg2000_of,
    jpeg_of_markers,
    jpeg_of_scans,
    jpeg_with_loose_bytes,
    png_of_chunks,
    saved,
    tiff_of,
    webp_of_chunks,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchsnow.data.formats import FORMATS, PREFIX_BYTES
from torchsnow.data.images import format_of, read_image
from torchsnow.serving.picture_parts import parts_problem

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1200, 3), dtype=np.uint8))
JPEG = saved(NOISE, "JPEG")


def png_in_chunks_of(size: int) -> bytes:
    content = saved(NOISE)
    start = content.index(b"IDAT") - 4
    rows, at = b"", start
    while content[at + 4 : at + 8] == b"IDAT":
        length = int.from_bytes(content[at : at + 4], "big")
        rows += content[at + 8 : at + 8 + length]
        at += 12 + length
    parts = b"".join(chunk(b"IDAT", rows[i : i + size]) for i in range(0, len(rows), size))
    return content[:start] + parts + content[at:]


GOOD: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: JPEG,
    "progressive jpeg": lambda: saved(NOISE, "JPEG", progressive=True),
    "jpeg with a restart after every row": lambda: saved(NOISE, "JPEG", restart_marker_rows=1),
    "jpeg with a jpeg in its exif": lambda: saved(NOISE, "JPEG", exif=b"Exif\0\0" + b"\xff\xda\0\2" * 9_000),
    "jpeg with a large profile": lambda: saved(NOISE, "JPEG", icc_profile=b"\xff\xda\0\2" * 1_000_000),
    "jpeg with something behind its end": lambda: JPEG + b"\xff\xda\0\2" * 9_000,
    "jpeg without an end": lambda: JPEG[:-2],
    "jpeg of as many scans as it may have": lambda: jpeg_of_scans(100),
    "png in small chunks": lambda: png_in_chunks_of(256),
    "png with something behind its end": lambda: saved(NOISE) + bytes(12 * 30_000),
    "webp": lambda: saved(NOISE, "WEBP"),
    "gif": lambda: saved(NOISE.resize((200, 200)), "GIF", comment=b"x" * 2**16),
    "bmp": lambda: saved(NOISE, "BMP"),
    "tiff": lambda: saved(NOISE, "TIFF"),
    "tiff in strips": lambda: saved(NOISE, "TIFF", compression="tiff_lzw", strip_size=4096),
    "tiff with a large profile": lambda: saved(NOISE, "TIFF", icc_profile=bytes(1_000_000)),
    "tiff of 64-bit offsets": lambda: saved(NOISE, "TIFF", big_tiff=True),
    "animated webp": lambda: saved(Image.new("L", (8, 8)), "WEBP", save_all=True, append_images=[NOISE.resize((8, 8))]),
    "webp with something behind its end": lambda: saved(Image.new("L", (8, 8)), "WEBP") + bytes(8 * 30_000),
    "avif": lambda: saved(NOISE.resize((200, 200)), "AVIF"),
    "jpeg 2000": lambda: saved(NOISE, "JPEG2000"),
    "jpeg 2000 in tiles and layers": lambda: saved(
        NOISE, "JPEG2000", tile_size=(128, 128), quality_mode="rates", quality_layers=[40, 20, 10]
    ),
    "jpeg 2000 in small precincts": lambda: saved(
        NOISE, "JPEG2000", precinct_size=(64, 64), codeblock_size=(16, 16), no_jp2=True
    ),
}
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: jpeg_of_scans(101), "more than 100 scans"),
    "thousands of scans": (lambda: jpeg_of_scans(10_000), "more than 100 scans"),
    "markers": (lambda: jpeg_of_markers(6_000_000), "more than 5000 markers"),
    "loose bytes": (lambda: jpeg_with_loose_bytes(70_000), "more than 65536 loose bytes"),
    "loose bytes alone": (lambda: b"\xff\xd8\xff\xe0\0\2" + bytes(10_000_000), "more than 65536 loose bytes"),
    "filling": (lambda: b"\xff\xd8" + b"\xff" * 10_000_000, "more than 65536 loose bytes"),
    "restarts before a scan": (lambda: b"\xff\xd8" + b"\xff\xd0" * 5_000_000, "more than 65536 loose bytes"),
    "segments that say they are shorter than nothing": (
        lambda: b"\xff\xd8" + b"\xff\xe0\0\0" * 5_000_000,
        "more than 5000 markers",
    ),
    "markers in a scan": (lambda: JPEG[:-2] + b"\xff\xfe\0\2" * 6_000, "more than 5000 markers"),
    "ends before a scan": (lambda: b"\xff\xd8" + b"\xff\xd9" * 5_001, "more than 5000 markers"),
    "png": (lambda: png_of_chunks(2_000_000), "more than 20000 chunks"),
    "webp": (lambda: webp_of_chunks(2_000_000), "more than 20000 chunks"),
    "gif": (lambda: gif_of_blocks(2_000_000), "more than 20000 blocks"),
    "gif with a comment of many parts": (lambda: gif_of_blocks(1, 2_000_000), "more than 20000 blocks"),
    "gif with loose bytes": (lambda: gif_with_loose_bytes(2_000_000), "more than 20000 blocks"),
    "strips": (lambda: tiff_of(273, 4, 20_001), "more than 20000 strips or tiles"),
    "tiles": (lambda: tiff_of(324, 4, 2**31, order=">"), "more than 20000 strips or tiles"),
    "tiles of a large tiff": (lambda: tiff_of(325, 16, 2**60, big=True), "more than 20000 strips or tiles"),
    "numbers": (lambda: tiff_of(320, 3, 10**6), "more than 200000 numbers"),
    "entries": (lambda: b"II*\0\x08\0\0\0\xff\xff", "more than 4096 entries"),
    "entries of a large tiff": (lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8, "more than 4096 entries"),
    "tiles of jpeg 2000": (lambda: jpeg2000_of(7_000, 28), "more than 20000 tiles"),
    "code blocks": (lambda: jpeg2000_of(7_000, 7_000, code_block=0), "more than 1000000 blocks"),
    "precincts": (lambda: jpeg2000_of(1_000, 1_000, precinct=0), "more than 1000000 blocks"),
    "precincts in boxes": (lambda: in_boxes(jpeg2000_of(1_000, 1_000, precinct=1)), "more than 1000000 blocks"),
    "layers": (lambda: jpeg2000_of(7_000, 1_000, layers=65_535), "more than 1000000 blocks"),
    "precincts of a tile": (
        lambda: jpeg2000_of(7_000, 7_000) + b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1" + jpeg2000_of(7, 7, precinct=0)[51:],
        "more than 1000000 blocks",
    ),
    "parts of tiles": (
        lambda: jpeg2000_of(70, 70) + b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\1\xff\x93" * 2_000_000,
        "more than 100000 markers",
    ),
    "boxes of jpeg 2000": (lambda: in_boxes(b"", 2_000_000), "more than 20000 boxes"),
    "boxes of avif": (lambda: box(b"ftyp", b"avif" * 3) + box(b"free", b"") * 2_000_000, "more than 20000 boxes"),
    "items of avif": (lambda: items_of(b"avif", 65_000), "more than 131072 bytes that list its items"),
    "items of heif": (lambda: items_of(b"heic", 65_000), "more than 131072 bytes that list its items"),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_good_pictures_have_few_parts(make: Callable[[], bytes]) -> None:
    content = make()
    kind = format_of(content[:PREFIX_BYTES])
    assert kind is not None
    assert parts_problem(content, kind) is None
    read_image(io.BytesIO(content + b"\xff\xd9"))  # with an end for the one that has none


@pytest.mark.parametrize(("make", "problem"), BAD.values(), ids=BAD)
def test_pictures_of_many_parts_are_known_in_little_time(make: Callable[[], bytes], problem: str) -> None:
    content = make()
    kind = format_of(content[:PREFIX_BYTES])
    assert kind is not None
    start_s = time.process_time()
    assert problem in str(parts_problem(content, kind))
    assert time.process_time() - start_s < 0.5


def test_a_scan_is_looked_through_in_little_time() -> None:
    start_s = time.process_time()
    assert parts_problem(JPEG[:-2] + b"\xff\x00" * 10_000_000 + b"\xff\xd0" * 5_000_000, "JPEG") is None
    assert time.process_time() - start_s < 2


@given(content=st.binary(max_size=300), kind=st.sampled_from(FORMATS))
def test_whatever_comes_is_looked_through(content: bytes, kind: str) -> None:
    problem = parts_problem(content, kind)
    assert problem is None or kind in ("TIFF", "JPEG2000")  # whose few bytes can speak of many
