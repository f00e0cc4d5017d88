from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from torchsnow.data import eval_transform, prepare, read_image, shorter_side
from torchsnow.data.images import Cut, cut, examine_image, in_grey_range, upright_rgb
from torchsnow.data.transforms import cut_of, scale
from torchsnow.errors import DataError
from torchsnow.source.config import CROP_MODES, Framing, InputConfig


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    image = read_image(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header promises far more pixels than its few kilobytes of zeros hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(2_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_every_format_is_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.new("RGB", (16, 8), (200, 40, 40)), tmp_path / f"a.{suffix}")
    assert read_image(path).size == (16, 8)
    assert np.abs(np.subtract(pixel(path), (200, 40, 40))).max() < 8


def test_a_format_outside_the_list_is_refused(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (4, 4)), tmp_path / "a.ppm")
    with pytest.raises(DataError, match="not an image in a format that is read"):
        read_image(path)


def test_streams_are_read_and_named(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png")
    stream = io.BytesIO(path.read_bytes())
    stream.seek(7)
    assert read_image(stream).getpixel((0, 0)) == (255, 0, 0)
    with path.open("rb") as file:
        assert read_image(file).size == (4, 4)
    with pytest.raises(DataError, match="from a stream: the file is empty"):
        read_image(io.BytesIO())


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened)
    assert read_image(path).size == ((2, 4) if 5 <= orientation <= 8 else (4, 2))
    assert np.array_equal(read_image(path), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12", b"Exif\0\0nonsense", b"Exif\0\0II"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path, exif: bytes, suffix: str) -> None:
    path = saved(Image.new("RGB", (4, 2), "white"), tmp_path / f"a.{suffix}", exif=exif)
    assert pixel(path) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert np.asarray(read_image(path))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_mode_i_is_16_bit_grey_or_refused(tmp_path: Path) -> None:
    good = saved(Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32)), tmp_path / "good.tiff")
    assert np.asarray(read_image(good))[0, :, 2].tolist() == [0, 1, 255]
    for number, value in enumerate([-1, 65536]):
        bad = saved(Image.fromarray(np.array([[0, value]], dtype=np.int32)), tmp_path / f"{number}.tiff")
        with pytest.raises(DataError, match="no defined 8-bit scale"):
            read_image(bad)


def test_floats_are_refused(tmp_path: Path) -> None:
    path = saved(Image.new("F", (2, 2)), tmp_path / "a.tiff")
    with pytest.raises(DataError, match="floats"):
        read_image(path)


def test_grey_bilevel_and_cmyk_are_converted(tmp_path: Path) -> None:
    assert pixel(saved(Image.new("L", (2, 2), 77), tmp_path / "l.png")) == (77, 77, 77)
    assert pixel(saved(Image.new("1", (2, 2), 1), tmp_path / "1.png")) == (255, 255, 255)
    assert pixel(saved(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), tmp_path / "c.tiff")) == (255, 0, 0)
    red = pixel(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.jpg"))
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 128))
    path = saved(rgba, tmp_path / "rgba.png")
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, 1) == (255, 127, 127)
    assert pixel(saved(Image.new("LA", (1, 1), (0, 0)), tmp_path / "la.png")) == (255, 255, 255)


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    opaque = saved(palette, tmp_path / "opaque.png")
    assert (pixel(opaque), pixel(opaque, 1)) == ((10, 20, 30), (200, 100, 50))
    for name, transparency in {"index.png": 0, "bytes.png": b"\x00\xff", "index.gif": 0}.items():
        path = saved(palette, tmp_path / name, transparency=transparency)
        assert (pixel(path), pixel(path, 1)) == ((255, 255, 255), (200, 100, 50))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert pixel(path)[0] > 240
    assert pixel(path)[2] < 15


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_png(30_000, 30_000))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"bomb\.png: 30000 x 30000 pixels are more than the 50,000,000 allowed"):
        read_image(path)


def test_the_cap_is_ours_and_does_not_warn(tmp_path: Path) -> None:
    large, enormous = tmp_path / "large.png", tmp_path / "enormous.png"
    large.write_bytes(bomb_png(10_000, 10_000))  # Pillow only warns of this one
    enormous.write_bytes(bomb_png(20_000, 20_000))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path, max_pixels, words in ((large, 50_000_000, "more than"), (enormous, 400_000_000, "truncated")):
            with pytest.raises(DataError, match=words):
                read_image(path, max_pixels)
    assert not caught
    assert limit == Image.MAX_IMAGE_PIXELS
    path = saved(Image.new("L", (10, 10)), tmp_path / "small.png")
    assert read_image(path, max_pixels=100).size == (10, 10)
    with pytest.raises(DataError, match="10 x 10 pixels are more than the 99 allowed"):
        read_image(path, max_pixels=99)


def test_strips_are_refused(tmp_path: Path) -> None:
    path = saved(Image.new("L", (101, 1)), tmp_path / "a.png")
    with pytest.raises(DataError, match="101 x 1 pixels: over 100 times as long"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_every_truncation_is_an_error_or_a_picture(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        assert examine_image(path).problem is not None or size > 0.95 * len(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"cut.{suffix}: damaged or truncated"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_flipped_bytes_never_escape_the_error_family(tmp_path: Path, suffix: str) -> None:
    whole = bytearray(saved(Image.new("RGB", (12, 12), "teal"), tmp_path / f"whole.{suffix}").read_bytes())
    generator = np.random.default_rng(1)
    for _ in range(150):
        damaged = whole.copy()
        for position in generator.integers(0, len(whole), 3):
            damaged[position] = generator.integers(0, 256)
        with suppress(DataError):
            assert read_image(io.BytesIO(damaged)).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not a picture at all", "not an image"), (b"\x89PNG\r\n\x1a\n", "damaged")],
)
def test_what_is_no_image_is_named_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"odd\.png: {reason}"):
        read_image(path)


@pytest.mark.parametrize(("format", "size_bytes"), [("PNG", 20), ("PNG", 60), ("BMP", 10), ("GIF", 8), ("GIF", 11)])
def test_a_truncated_file_is_that_in_no_words_of_python(format: str, size_bytes: int) -> None:
    content = io.BytesIO()
    Image.effect_noise((20, 20), 90).save(content, format)
    with pytest.raises(DataError) as caught:
        read_image(io.BytesIO(content.getvalue()[:size_bytes]))
    assert "damaged or truncated" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("unpack", "buffer", "index", "subscript"))


@pytest.mark.parametrize(
    "given",
    [b"\x89PNG", None, 3, ["a.png"], Image.new("RGB", (8, 8)), np.zeros((4, 4, 3), np.uint8), io.StringIO("x")],
)
def test_what_is_no_file_is_refused_by_its_type(given: Any) -> None:
    with pytest.raises(
        DataError, match=f"it is of the type {type(given).__name__}; expected a path or a binary stream"
    ):
        read_image(given)


def test_a_pure_path_is_a_path(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png")
    assert read_image(PurePath(path)).size == (4, 4)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match=": it is a folder"):
        read_image(tmp_path)


def test_the_shorter_side_is_known_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((30, 50), 90).save(path)
    path.write_bytes(path.read_bytes()[:60])
    assert shorter_side(path) == 30
    with pytest.raises(DataError, match=r"cannot read the image .*gone\.png"):
        shorter_side(tmp_path / "gone.png")


NAMES = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


def config_of(interpolation: str, crop_pct: float) -> InputConfig:
    return InputConfig((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), interpolation, crop_pct)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.965, 1.0]),
    interpolation=st.sampled_from(NAMES),
    crop_mode=st.sampled_from(CROP_MODES),
)
def test_cut_and_scaled_is_evaluation(
    width: int, height: int, size: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    config, framing = config_of(interpolation, crop_pct), Framing(size, crop_mode)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    pixels = pil_to_tensor(cut(image, cut_of(config, framing)))
    assert torch.equal(scale(config)(pixels), eval_transform(config, framing)(image))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_a_range_of_greys_is_cut_as_it_is_evaluated(crop_mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 5000, (20, 30), dtype=np.uint16)
    deep, framing = upright_rgb(Image.fromarray(values)), Framing(16, crop_mode, (100, 4195))
    config = config_of("bilinear", 0.9)
    expected = eval_transform(config, framing)(in_grey_range(deep, framing.grey_range))
    how = Cut(*json.loads(json.dumps(cut_of(config, framing))))
    assert torch.equal(scale(config)(pil_to_tensor(cut(deep, how))), expected)
    for picture in (deep, values, Image.fromarray(values), pil_to_tensor(prepare(config, framing)(deep))):
        assert torch.equal(eval_transform(config, framing)(picture), expected)
    whole = eval_transform(config, Framing(16, crop_mode))(deep)
    spread, narrow = (one[:, 4:12, 4:12].std((1, 2)) for one in (expected, whole))  # in the middle there is no border
    assert bool((spread > 5 * narrow).all())


def test_what_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="at least 1 pixel"):
        cut_of(config_of("bilinear", 1.0), Framing(0))
    with pytest.raises(DataError, match="unknown interpolation 'sharp'"):
        cut_of(config_of("sharp", 1.0), Framing(32))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="it has no pixels"):
        upright_rgb(Image.new("L", (8, 0)))


def test_16_bit_grey_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.full((500, 1000), 40_000, np.uint16)), tmp_path / "deep.png")
    tracemalloc.start()
    try:
        read_image(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 500 * 1000


def test_reading_and_cutting_pictures_does_not_load_torch() -> None:
    code = "import sys, torchsnow.data.images; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[]\n", "")
