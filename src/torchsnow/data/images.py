"""Safe decoding: any picture file becomes an upright 8-bit RGB image, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from torchsnow.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
# Resizing by the shorter side blows a strip up to gigabytes, so strips are refused like decompression bombs.
MAX_ASPECT_RATIO = 100
# What undoes each EXIF orientation. (ImageOps.exif_transpose also rewrites the EXIF, and fails where it is damaged.)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture (JPEG, PNG, WebP, BMP, TIFF, GIF) into an upright image of mode RGB.

    `file` is a path or a seekable binary stream. What is not plain RGB is brought there by fixed rules:

    - EXIF orientation is applied; an orientation that cannot be read counts as upright.
    - Transparency (RGBA, LA, palette or colour key) is composited on white.
    - 16-bit grey, also as mode I, is divided by 257 and rounded, so that 65535 becomes 255.
    - Greyscale, 1-bit, palette, CMYK and YCbCr are converted as Pillow does.
    - Of an animation or a file with several pages, the first one is read.

    Raises DataError, naming the file and the reason, for a file that is missing, empty, truncated or no image of
    these formats, has over `max_pixels` pixels (known from its header, before anything is decoded), is over 100
    times as long as it is wide, or holds values without a defined 8-bit scale (floats, 32-bit integers above 65535).
    """
    try:
        return _read(file, max_pixels)
    except DataError as error:
        raise DataError(f"cannot read the image {_name(file)}: {error}") from error


def image_problem(file: Path, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why `read_image` would refuse this file, found by decoding all of it; None for a good one."""
    try:
        _read(file, max_pixels)
    except DataError as error:
        return str(error)
    return None


def shorter_side(file: Path) -> int:
    """The shorter side in pixels, from the header alone. Raises DataError as `read_image` does for what it reads."""
    try:
        with file.open("rb") as stream:
            return min(_open(stream).size)
    except Exception as error:  # as in `_read`
        raise DataError(f"cannot read the image {file}: {error or type(error).__name__}") from error


def format_of(content: bytes) -> str | None:
    """Which of FORMATS a file is in, by its first 16 bytes; None for any other."""
    Image.init()
    for name in FORMATS:
        _, accept = Image.OPEN[name]
        if accept is not None and accept(content[:16]) is True:
            return name
    return None


def _read(file: Path | BinaryIO, max_pixels: int) -> Image.Image:
    try:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                return _decode(stream, max_pixels)
        return _decode(file, max_pixels)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("there is no such file") from error
    except IsADirectoryError as error:
        raise DataError("it is a folder") from error
    except MemoryError as error:
        raise DataError("there is not enough memory to decode it") from error
    # Decoders meet damaged files with nearly every exception there is: OSError, SyntaxError, struct.error, KeyError...
    except Exception as error:
        raise DataError(f"damaged or truncated ({error or type(error).__name__})") from error


def _decode(stream: BinaryIO, max_pixels: int) -> Image.Image:
    image = _open(stream)
    _check_size(image.size, max_pixels)
    image.load()
    return _to_rgb(_upright(image))


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    """Read the header only.

    `Image.open` would answer enormous pictures with a warning, which only process-wide settings can silence; so the
    registered decoder is called directly, and `_check_size` does the refusing.
    """
    stream.seek(0)
    prefix = stream.read(16)
    if not prefix:
        raise DataError("the file is empty")
    name = format_of(prefix)
    if name is None:
        raise DataError(f"not an image in one of the formats {', '.join(FORMATS)}")
    stream.seek(0)
    factory, _ = Image.OPEN[name]
    return factory(stream, "")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not width or not height:
        raise DataError("it has no pixels")
    if width * height > max_pixels:
        raise DataError(f"{width} x {height} pixels are more than the {max_pixels:,} allowed; scale it down")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise DataError(f"{width} x {height} pixels: over {MAX_ASPECT_RATIO} times as long as wide; crop it")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF is common in good photographs.
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bit_grey(image).convert("RGB")
    if image.mode == "F":
        raise DataError("its pixels are floats, which have no defined 8-bit scale; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("its 32-bit values leave 0..65535, so they have no defined 8-bit scale; save it with 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _name(file: Path | BinaryIO) -> str:
    return str(file) if isinstance(file, Path) else str(getattr(file, "name", "from a stream"))
