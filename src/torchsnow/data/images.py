"""Safe decoding: any picture file becomes an upright 8-bit RGB image, or one clear error."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from torchsnow.data.formats import COLOUR_KEY, FULL_GREY, PREFIX_BYTES, WHITE_IS_ZERO, open_image
from torchsnow.data.formats import format_of as format_of
from torchsnow.errors import DataError
from torchsnow.source.config import GREYS

MAX_PIXELS = 50_000_000
# Resizing by the shorter side blows a strip up to gigabytes, so strips are refused like decompression bombs.
MAX_ASPECT_RATIO = 100
DEEP_GREY = "deep_grey"
"""An entry of a picture's `info`: its greys of 16 bits, as a picture of mode I;16."""
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


class Examined(NamedTuple):
    """What is known of an image file once all of it was decoded.

    `problem` is why it cannot be used, None for a good one; `digest` is a hash of its content, empty where that cannot
    be read; `greys` are the lowest and the highest value of a grey image of 16 bits, None for others.
    """

    problem: str | None
    digest: str
    greys: tuple[int, int] | None = None


def read_image(file: str | Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, HEIC) into an upright image of mode RGB.

    `file` is a path or a seekable binary stream. What is not plain RGB is brought there by fixed rules:

    - EXIF orientation is applied; an orientation that cannot be read counts as upright.
    - Transparency (RGBA, LA, palette or colour key) is composited on white; a BMP that is transparent everywhere has
      an unused fourth byte, and is opaque.
    - 16-bit grey, also as mode I, is divided by 257 and rounded, so that 65535 becomes 255 (the values themselves stay
      at hand for `Framing.grey_range`); 12-bit grey likewise. Of 16-bit colours the high byte is kept.
    - Greyscale, 1-bit, palette, CMYK and YCbCr are converted as Pillow does, and white-is-zero is inverted.
    - Of an animation or a file with several pages, the first one is read.
    - Damaged notes (EXIF, text in a PNG) are ignored.

    HEIC needs the extra `heif`. Raises DataError, naming the file and the reason, for a file that is missing, not
    permitted, empty, truncated or no image of these formats, has over `max_pixels` pixels (known from its header,
    before anything is decoded), is over 100 times as long as it is wide, or holds values without a defined 8-bit
    scale (floats, 32-bit integers above 65535).
    """
    file = Path(file) if isinstance(file, str) else file
    if not isinstance(file, Path) and (issubclass(type(file), io.TextIOBase) or not hasattr(file, "read")):
        raise DataError(
            f"read_image was given a {type(file).__name__}; expected a path or a binary stream, as io.BytesIO is "
            "for bytes; pictures of PIL and arrays go to the transform as they are"
        )
    try:
        return _read(file, max_pixels)
    except DataError as error:
        raise DataError(f"cannot read the image {_name(file)}: {error}") from error


def examine_image(path: Path) -> Examined:
    """Decode all of a file, as `read_image` does, and hash its content."""
    digest = ""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _digest).hexdigest()
        image = _read(path, MAX_PIXELS)
    except DataError as error:
        return Examined(str(error), digest)
    except OSError as error:
        return Examined(_unreadable(error), digest)
    deep = image.info.get(DEEP_GREY)
    return Examined(None, digest, None if deep is None else deep.getextrema())


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def shorter_side(file: Path) -> int:
    """The shorter side in pixels, from the header alone. Raises DataError as `read_image` does for what it reads."""
    try:
        with file.open("rb") as stream:
            return min(_open(stream).size)
    except Exception as error:  # as in `_read`
        raise DataError(f"cannot read the image {file}: {error or type(error).__name__}") from error


def _read(file: Path | BinaryIO, max_pixels: int) -> Image.Image:
    try:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                return _decode(stream, max_pixels)
        return _decode(file, max_pixels)
    except DataError:
        raise
    # Decoders meet damaged files with nearly every exception there is: OSError, SyntaxError, struct.error, KeyError...
    except Exception as error:
        raise DataError(_unreadable(error)) from error


def _unreadable(error: Exception) -> str:
    match error.__cause__ if isinstance(error, SyntaxError) and error.__cause__ else error:  # Pillow makes it of others
        case FileNotFoundError():
            return "there is no such file"
        case IsADirectoryError():
            return "it is a folder"
        case PermissionError():
            return "permission denied; check the owner and the mode of the file"
        case OSError(errno=int(number)):  # the system's; those of decoders have no number
            return f"the system cannot read it ({os.strerror(number)})"
        case MemoryError():
            return "there is not enough memory to decode it"
        case UnicodeError() | LookupError() | TypeError() | struct.error():  # of a reader that expects more
            return "damaged or truncated"
    return f"damaged or truncated ({error or type(error).__name__})"


def _decode(stream: BinaryIO, max_pixels: int) -> Image.Image:
    image = _open(stream)
    _validate_size(image.size, max_pixels)
    image.load()
    return upright_rgb(image)


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    """Read the header only; `_validate_size` refuses what is enormous."""
    stream.seek(0)
    prefix = stream.read(PREFIX_BYTES)
    if not prefix:
        raise DataError("the file is empty")
    name = format_of(prefix)
    if name is None:
        raise DataError("not an image in a format that is read (docs/own-images.md)")
    stream.seek(0)
    return open_image(stream, name)


def _validate_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not width or not height:
        raise DataError("it has no pixels")
    if width * height > max_pixels:
        raise DataError(f"{width} x {height} pixels are more than the {max_pixels:,} allowed; scale it down")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise DataError(f"{width} x {height} pixels: over {MAX_ASPECT_RATIO} times as long as wide; crop it")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF is common in good photographs.
        return None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as `read_image` gives it. Raises DataError for one of no pixels, and for values without a
    defined 8-bit scale."""
    if not all(image.size):
        raise DataError("it has no pixels")
    turn = _turn(image)
    rgb = _to_rgb(image)
    notes: dict[Any, Any] = {DEEP_GREY: rgb.info[DEEP_GREY]} if DEEP_GREY in rgb.info else {}
    if turn is not None:
        rgb, notes = rgb.transpose(turn), {key: deep.transpose(turn) for key, deep in notes.items()}
    rgb.info = notes  # what the file said of its orientation and transparency is done
    return rgb


def in_grey_range(image: Image.Image, grey_range: Sequence[int]) -> Image.Image:
    """A picture that `read_image` gave; one of 16-bit greys with these two as black and white."""
    deep = image.info.get(DEEP_GREY)
    return image if deep is None or tuple(grey_range) == GREYS else _spread(np.asarray(deep), *grey_range)


def _spread(values: NDArray[Any], black: int, white: int) -> Image.Image:
    """Greys (H, W) of 16 bits as an RGB picture, rounded; those below black and above white are cut off."""
    return Image.fromarray(_shades(black, white)[values]).convert("RGB")


@lru_cache(8)
def _shades(black: int, white: int) -> NDArray[np.uint8]:
    """The grey of 8 bits for every one of 16; looking them up is ten times as fast as dividing each pixel."""
    above, span = np.arange(2**16).clip(black, white) - black, white - black
    return ((above * 255 + span // 2) // span).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("its pixels are floats, which have no defined 8-bit scale; save it with 8 or 16 bits")
    if image.mode in ("LAB", "HSV", "La"):
        raise DataError(f"its colours are {image.mode}, which is not supported; save it as RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _from_deep_grey(image)
    elif not image.has_transparency_data or _has_unused_alpha(image):
        rgb = image.convert("RGB")
    else:
        colour = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
    if COLOUR_KEY in image.info:
        rgb.paste("white", mask=Image.fromarray(image.info.pop(COLOUR_KEY)))
    return rgb


def _has_unused_alpha(image: Image.Image) -> bool:
    """Whether a fourth byte that its file need not mean as transparency is 0 everywhere."""
    undeclared = image.format == "BMP" or (isinstance(image, TiffImagePlugin.TiffImageFile) and 338 not in image.tag_v2)
    return undeclared and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    given = np.asarray(image)
    white = image.info.get(FULL_GREY, 65535)
    if given.min() < 0 or given.max() > white:
        raise DataError("its 32-bit values leave 0..65535, so they have no defined 8-bit scale; save it with 16 bits")
    values = given.astype(np.uint16)
    if image.info.get(WHITE_IS_ZERO):
        values = white - values
    if COLOUR_KEY in image.info:
        values[image.info[COLOUR_KEY]] = white
    rgb = _spread(values, 0, white)
    if white == 65535:
        rgb.info[DEEP_GREY] = Image.fromarray(values)
    return rgb


def _name(file: Path | BinaryIO) -> str:
    return str(file) if isinstance(file, Path) else str(getattr(file, "name", "from a stream"))


class Cut(NamedTuple):
    """Both sides ("squash"), the shorter one ("center") or the longer one ("border", filled up with the colour `fill`)
    are resized to `resize_size` pixels, with Pillow's filter number `resample`; of that, the centre of `size` x `size`
    pixels is kept. Of 16-bit greys, those of `grey_range` become black and white. `transforms.cut_of` says which cut a
    source wants."""

    size: int
    resize_size: int
    crop_mode: str
    resample: int
    grey_range: Sequence[int] = GREYS
    fill: Sequence[int] = (0, 0, 0)


def cut(image: Image.Image, how: Cut) -> Image.Image:
    """What `eval_transform` sees of an image, to the last bit, before it becomes a tensor."""
    image = in_grey_range(image, how.grey_range)
    width, height = image.size
    resized = (how.resize_size, how.resize_size)
    if how.crop_mode == "border":
        resized = within(width, height, how.resize_size)
    if how.crop_mode == "center":
        shorter = min(width, height)
        resized = (int(how.resize_size * width / shorter), int(how.resize_size * height / shorter))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling(how.resample))
    if how.crop_mode == "border":
        square = Image.new("RGB", (how.resize_size, how.resize_size), tuple(how.fill))
        square.paste(image, ((how.resize_size - resized[0]) // 2, (how.resize_size - resized[1]) // 2))
        image, resized = square, square.size
    left, top = (round((side - how.size) / 2) for side in resized)
    return image.crop((left, top, left + how.size, top + how.size))


def within(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is resized to so many pixels."""
    longer = max(width, height)
    return max(1, side * width // longer), max(1, side * height // longer)
