"""The right pixel for every format, depth and byte order, and a clear word for what has none."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from torchsnow.data import read_image
from torchsnow.data.formats import format_of
from torchsnow.data.images import examine_image, in_grey_range
from torchsnow.errors import DataError

WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def pixels(content: bytes) -> list[tuple[int, ...]]:
    """The first row."""
    return [tuple(pixel) for pixel in np.asarray(read_image(io.BytesIO(content)))[0].tolist()]


def greys(content: bytes) -> list[int]:
    row = pixels(content)
    assert all(len(set(pixel)) == 1 for pixel in row)
    return [pixel[0] for pixel in row]


def tiff(values: Any, byteorder: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=byteorder) as writer:
        writer.write(values, **options)
    return file.getvalue()


def png(width: int, depth: int, kind: int, row: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + body + behind + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def bmp(pixels: bytes, header_bytes: int) -> bytes:
    """Two pixels of four bytes; from V4 on, the fourth is declared to be alpha."""
    compression = 0 if header_bytes == 40 else 3
    header = struct.pack("<IiiHHIIiiII", header_bytes, 2, 1, 1, 32, compression, 8, 0, 0, 0, 0)
    if header_bytes > 40:
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        header += masks + b"BGRs" + bytes(header_bytes - 60)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start) + header + pixels


ORDERS = pytest.mark.parametrize("order", ["<", ">"])
PACKED = pytest.mark.parametrize("compression", [None, "zlib"])
PLANES = pytest.mark.parametrize("planes", ["contig", "separate"])


@ORDERS
@PACKED
@pytest.mark.parametrize("zero", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(("dtype", "top"), [("u1", 255), ("u2", 65535), ("u4", 65535)])
def test_grey_tiff(order: str, compression: str | None, zero: str, dtype: str, top: int) -> None:
    values = np.array([[0, top // 5, top]], dtype=dtype)
    content = tiff(values, order, photometric=zero, compression=compression)
    assert greys(content) == ([0, 51, 255] if zero == "minisblack" else [255, 204, 0])


@ORDERS
@PACKED
@pytest.mark.parametrize("dtype", ["i2", "i4"])
def test_signed_grey_tiff_is_read_or_refused(order: str, compression: str | None, dtype: str) -> None:
    content = tiff(np.array([[0, 257, 25700]], dtype=dtype), order, photometric="minisblack", compression=compression)
    assert greys(content) == [0, 1, 100]
    content = tiff(np.array([[0, -1]], dtype=dtype), order, photometric="minisblack", compression=compression)
    with pytest.raises(DataError, match="no defined 8-bit scale"):
        pixels(content)


@ORDERS
@pytest.mark.parametrize("dtype", ["i1", "f2", "f4", "f8", "u8"])
def test_values_without_a_scale_are_refused_in_words(order: str, dtype: str) -> None:
    content = tiff(np.array([[0, 1]], dtype=dtype), order, photometric="minisblack")
    with pytest.raises(DataError, match=r"; save it (with|as) (8|unsigned)"):
        pixels(content)


@ORDERS
@PLANES
@PACKED
@pytest.mark.parametrize(("dtype", "top"), [("u1", 255), ("u2", 65535)])
def test_colour_tiff(order: str, planes: str, compression: str | None, dtype: str, top: int) -> None:
    def stored(values: Any, **options: Any) -> list[tuple[int, ...]]:
        values = np.array(values, dtype=dtype) * np.array(top, dtype)
        values = values if planes == "contig" else np.moveaxis(values, -1, 0)
        return pixels(tiff(values, order, planarconfig=planes, compression=compression, **options))

    assert stored([[[0, 0, 1], [1, 0, 0]]] * 2, photometric="rgb") == [BLUE, RED]
    clear = [[[0, 0, 1, 0], [1, 0, 0, 1]]] * 2
    assert stored(clear, photometric="rgb", extrasamples=["unassalpha"]) == [WHITE, RED]
    assert stored([[[0, 0, 0, 0], [1, 0, 0, 1]]] * 2, photometric="rgb", extrasamples=["assocalpha"]) == [WHITE, RED]
    inks = [[[0, 1, 1, 0], [0, 0, 0, 1]]] * 2
    assert stored(inks, photometric="separated") == [RED, BLACK]


@ORDERS
def test_a_fourth_sample_without_a_meaning_is_not_transparency(order: str) -> None:
    values = np.array([[[0, 0, 255, 0], [255, 0, 0, 0]]], dtype="u1")
    content = tiff(values, order, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"])
    assert pixels(content) == [BLUE, RED]


def test_a_big_tiff_is_read_or_refused_in_words() -> None:
    values = np.array([[0, 65535]], dtype=np.uint16)
    for order in "<>":
        content = io.BytesIO()
        tifffile.imwrite(content, values, bigtiff=True, byteorder=order)
        if order == "<":
            assert read_image(content).getpixel((1, 0)) == (255, 255, 255)
        else:
            with pytest.raises(DataError, match="a BigTIFF in big-endian order, which is not supported"):
                read_image(content)


def test_other_colours_are_refused_in_words() -> None:
    content = tiff(np.zeros((2, 2, 3), "u1"), "<", photometric="cielab")
    with pytest.raises(DataError, match="its colours are LAB, which is not supported; save it as RGB"):
        pixels(content)


@ORDERS
def test_differences_of_neighbours_are_undone(order: str) -> None:
    values = np.array([[0, 257, 25700, 65535]], dtype="u2")
    for predictor in (False, True):
        content = tiff(values, order, photometric="minisblack", compression="zlib", predictor=predictor)
        assert greys(content) == [0, 1, 100, 255]


@ORDERS
@PACKED
@pytest.mark.parametrize("scale", [257, 1])
def test_a_palette_of_16_bits_or_of_bytes(order: str, compression: str | None, scale: int) -> None:
    palette = np.zeros((3, 256), "u2")
    palette[:, 1], palette[:, 2] = (10, 20, 30), (200, 100, 50)
    content = tiff(
        np.array([[2, 1]], "u1"), order, photometric="palette", colormap=palette * scale, compression=compression
    )
    assert pixels(content) == [(200, 100, 50), (10, 20, 30)]


def test_12_bit_grey_is_scaled_by_its_own_depth() -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00])  # 4095, 0, 2048, 0
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert len(content) == 122
    assert greys(content + packed) == [255, 0, 128, 0]


@pytest.mark.parametrize("header_bytes", [40, 108, 124])
def test_a_bmp_with_an_unused_fourth_byte_is_opaque(header_bytes: int) -> None:
    assert pixels(bmp(bytes([30, 20, 10, 0, 3, 2, 1, 0]), header_bytes)) == [(10, 20, 30), (1, 2, 3)]


def test_a_bmp_with_alpha_is_put_on_white() -> None:
    assert pixels(bmp(bytes([30, 20, 10, 255, 3, 2, 1, 0]), 108)) == [(10, 20, 30), WHITE]


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x40", 0, [255, 255]),
        (1, b"\x40", 1, [0, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (2, b"\x1b", 2, [0, 85, 255, 255]),
        (4, b"\x5a", 5, [255, 170]),
        (8, b"\x05\x00", 5, [255, 0]),
        (8, b"\x05\x00", 0x105, [255, 0]),  # bits beyond the depth mean nothing
        (16, b"\x01\x02\x01\x03", 0x102, [255, 1]),
    ],
)
def test_the_colour_key_of_a_grey_png(depth: int, row: bytes, key: int, expected: list[int]) -> None:
    content = png(len(expected), depth, 0, row, chunk(b"tRNS", struct.pack(">H", key)))
    assert greys(content) == expected


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (8, bytes([1, 2, 3, 1, 2, 4]), [WHITE, (1, 2, 4)]),
        (16, struct.pack(">6H", 1, 2, 3, 1, 2, 4), [WHITE, BLACK]),  # they differ in the low byte alone
        (16, struct.pack(">6H", 1, 2, 3, 257, 2, 3), [WHITE, (1, 0, 0)]),
    ],
)
def test_the_colour_key_of_a_colour_png(depth: int, row: bytes, expected: list[tuple[int, ...]]) -> None:
    assert pixels(png(2, depth, 2, row, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))) == expected


def test_the_depths_of_png() -> None:
    assert greys(png(4, 2, 0, b"\x1b")) == [0, 85, 170, 255]
    assert greys(png(2, 4, 0, b"\x5a")) == [85, 170]
    assert greys(png(2, 16, 4, b"\x80\0\0\0\x80\0\xff\xff")) == [255, 128]
    assert pixels(png(2, 16, 6, struct.pack(">8H", 0, 0, 0, 0, 65535, 0, 0, 65535))) == [WHITE, RED]
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50])) + chunk(b"tRNS", b"\xff\0")
    assert pixels(png(2, 4, 3, b"\x01", palette)) == [(10, 20, 30), WHITE]


LONG = zlib.compress(bytes(3_000_000))
NOTES = {
    "long zTXt": chunk(b"zTXt", b"k\0\0" + LONG),
    "long iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + LONG),
    "much tEXt": chunk(b"tEXt", b"k\0" + b"a" * 1_000_000) * 70,
    "damaged tEXt": chunk(b"tEXt", b"k\0text", damage=1),
    "damaged pHYs": chunk(b"pHYs", bytes(9), damage=1),
    "damaged eXIf": chunk(b"eXIf", b"II*\0", damage=1),
    "damaged iCCP": chunk(b"iCCP", b"k\0\0nonsense"),
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES.keys())
def test_bad_notes_do_not_cost_a_png(note: bytes) -> None:
    assert greys(png(1, 8, 0, b"\x05", before=note)) == [5]
    assert greys(png(1, 8, 0, b"\x05", behind=note)) == [5]


def test_a_damaged_note_does_not_cost_the_transparency() -> None:
    key = chunk(b"tRNS", b"\0\5")
    assert greys(png(2, 8, 0, b"\x05\x06", before=NOTES["damaged tEXt"] + key)) == [255, 6]


@pytest.mark.parametrize(("name", "suffix"), [("AVIF", "avif"), ("JPEG2000", "jp2")])
def test_newer_formats(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16), (200, 40, 40)).save(path)
    assert format_of(path.read_bytes()[:32]) == name
    assert np.abs(np.subtract(read_image(path).getpixel((3, 3)), (200, 40, 40))).max() < 8


def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 40, 40))).save(path)
    assert format_of(path.read_bytes()[:32]) == "HEIF"
    assert np.abs(np.subtract(read_image(path).getpixel((3, 3)), (200, 40, 40))).max() < 8
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert examine_image(path).problem == "reading HEIC needs the library pillow-heif: pip install 'torchsnow[heif]'"


def test_deep_grey_keeps_all_16_bits_of_a_jpeg_2000(tmp_path: Path) -> None:
    values = np.tile(np.array([0, 257, 32896, 65535], dtype=np.uint16), (4, 1))
    Image.fromarray(values).save(tmp_path / "a.jp2", irreversible=False)
    assert greys((tmp_path / "a.jp2").read_bytes()) == [0, 1, 128, 255]


def test_what_is_no_picture_has_no_format() -> None:
    assert format_of(b"") is None
    assert format_of(b"\0\0\0\x18ftypisom\0\0\0\0isommp42") is None  # a film


def test_the_small_copy_in_a_raw_photograph_is_not_taken_for_it(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "a.nef", "TIFF", tiffinfo={254: 1})
    assert "its first picture is a small copy of the one that is meant" in (
        examine_image(tmp_path / "a.nef").problem or ""
    )


def test_a_text_is_a_path(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png")).getpixel((0, 0)) == RED
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        read_image(str(tmp_path / "gone.png"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "permission denied; check"),
        (OSError(5, "Input/output error"), "the system cannot read it (Input/output error)"),
        (MemoryError(), "not enough memory"),
        (OSError("broken data stream"), "damaged or truncated (broken data stream)"),
    ],
)
def test_what_the_system_refuses_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr("torchsnow.data.images.open_image", refuse)
    assert words in (examine_image(tmp_path / "a.png").problem or "")


def test_a_turned_picture_is_not_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == ImageOps.exif_transpose(image).size == (2, 4)


def test_the_greys_are_known_for_16_bits_alone(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 4095]], dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (2, 2), 9).save(tmp_path / "grey.png")
    assert examine_image(tmp_path / "deep.png").greys == (7, 4095)
    assert examine_image(tmp_path / "grey.png").greys is None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_range_of_greys_is_spread_over_black_to_white(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.array([[0, 100, 1130, 2160, 4219, 4220, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}", exif=exif)
    image = read_image(tmp_path / f"deep{suffix}")
    assert np.asarray(image)[:, 0, 0].tolist() == [0, 0, 4, 8, 16, 16, 255]
    spread = in_grey_range(image, (100, 4220))
    assert (spread.mode, np.asarray(spread)[:, 0, 1].tolist()) == ("RGB", [0, 0, 64, 128, 255, 255, 255])
    assert in_grey_range(image, (0, 65535)) is image
    Image.new("L", (2, 2), 9).save(tmp_path / "grey.png")
    assert np.asarray(in_grey_range(read_image(tmp_path / "grey.png"), (100, 4220))).max() == 9


def test_a_transparent_grey_is_white_in_every_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 9, 4095]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=9)
    image = read_image(tmp_path / "a.png")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 255, 16]
    assert np.asarray(in_grey_range(image, (0, 8190)))[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(("kind", "samples"), [(2, 3), (6, 4), (4, 2)])
def test_the_brightest_of_16_bit_colours_is_known(tmp_path: Path, kind: int, samples: int) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 16, kind, struct.pack(f">{samples}H", *[4095] * samples)))
    assert examine_image(tmp_path / "a.png").brightest == 15
    (tmp_path / "b.png").write_bytes(png(1, 8, 2, bytes(3)))
    assert examine_image(tmp_path / "b.png").brightest is None
