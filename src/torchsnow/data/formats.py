"""The readers of Pillow for each format, made right where they refuse good files or give wrong pixels."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from torchsnow.errors import DataError

SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "HEIF": ".heic",
}
FORMATS = tuple(SUFFIXES)
PREFIX_BYTES = 32
"""So much of a file says which format it is in."""
WHITE_IS_ZERO, FULL_GREY, COLOUR_KEY, DEEP = "white_is_zero", "full_grey", "colour_key", "deep"
"""Entries of a picture's `info`: its greys are negative; the grey that is white, where that is not 255 or 65535; where
it is transparent, as a mask; its colours had 16 bits, of which 8 are left."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_GREY_LEVELS = {"L;2": 4, "L;4": 16}


def format_of(content: bytes) -> str | None:
    """Which of FORMATS a file is in, by its first `PREFIX_BYTES` bytes; None for any other."""
    if content[4:8] == b"ftyp":
        brands = [content[at : at + 4] for at in range(8, len(content), 4)]
        if any(brand in _AVIF_BRANDS for brand in brands):
            return "AVIF"
        return "HEIF" if brands and brands[0] in _HEIF_BRANDS else None
    Image.init()
    for name in FORMATS:
        _, accept = Image.OPEN.get(name, (None, None))
        if accept is not None and accept(content[:16]) is True:
            return name
    return None


def open_image(stream: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Read the header of a picture in the format `name`, at the start of a stream.

    `Image.open` would answer enormous pictures with a warning, which only process-wide settings can silence; so the
    registered reader is called directly. Raises DataError for a reader that is not installed, and what readers raise.
    """
    if name == "PNG":
        return _open_png(stream)
    if name == "TIFF":
        return _Tiff(stream, "")
    if name == "HEIF":
        return _heif_reader()(stream, "")
    if name not in Image.OPEN:
        raise DataError(f"this build of Pillow does not read {name}: pip install --upgrade pillow")
    factory, _ = Image.OPEN[name]
    return factory(stream, "")


def _heif_reader() -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise DataError("reading HEIC needs the library pillow-heif: pip install 'torchsnow[heif]'") from error
    reader: type[ImageFile.ImageFile] = HeifImageFile
    return reader


class _Tiff(TiffImagePlugin.TiffImageFile):
    """TIFF as Pillow has it, but for greys deeper than 8 bits, samples in separate planes, signed ones, and
    palettes of bytes."""

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.read(4) == b"MM\0+":  # which Pillow reads as an ordinary TIFF
            raise DataError("it is a BigTIFF in big-endian order, which is not supported; save it as TIFF")
        self.fp.seek(0)
        super()._open()

    def _setup(self) -> None:
        tags = self.tag_v2
        if _first(tags.get(254, 0)) & 1:
            raise DataError(
                "its first picture is a small copy of the one that is meant, as in raw photographs; save it as JPEG"
            )
        bits, sample_format = (_first(tags.get(tag, 1)) for tag in (258, 339))
        layout = f"its pixels are {tags.get(277, 1)} x {bits} bits in a layout"
        white_is_zero = tags.get(262) == 0 and bits > 8
        if tags.get(262, 0) == 0 and bits > 8:  # Pillow knows these greys as they are, or not at all
            tags[262] = 1
        if bits == 32 and sample_format == 1:  # read as signed, so that the largest are negative, and refused
            tags[339] = 2
        if 320 in tags and max(tags[320]) < 256:  # a palette of bytes, which libtiff takes as such
            tags[320] = tuple(257 * value for value in tags[320])
        try:
            super()._setup()
        except (SyntaxError, IndexError) as error:
            raise DataError(f"{layout} that is not supported ({error}); save it as 8-bit RGB") from error
        if white_is_zero:
            self.info[WHITE_IS_ZERO] = True
        if bits < 16 and self.mode == "I;16":
            self.info[FULL_GREY] = 2**bits - 1
        if bits == 16 and self.mode in ("RGB", "RGBA"):
            self.info[DEEP] = True
        if sample_format == 2 and bits == 8:
            raise DataError("its pixels are signed bytes, which have no defined scale; save it with unsigned ones")
        if self.tile:
            self.tile = self._corrected(bits, _first(tags.get(338, 0)))

    def _corrected(self, bits: int, extra: int) -> list[ImageFile._Tile]:
        first = self.tile[0]
        if self._planar_configuration == 2 and self.mode in ("RGB", "RGBA", "CMYK"):
            # Pillow's own reader of separate planes takes two bytes for two pixels; libtiff's does not.
            raw = "RGBa" if extra == 1 and self.mode == "RGBA" else self.mode
            args = (f"{raw};16N" if bits == 16 else raw, False, self.tag_v2.offset)
            self.use_load_libtiff = True
            return [ImageFile._Tile("libtiff", (0, 0, *self._tile_size), 0, args)]
        if first.codec_name == "libtiff" and isinstance(first.args, tuple) and first.args[0] in ("I;16BS", "I;32BS"):
            swapped = str(first.args[0]) if sys.byteorder == "big" else str(first.args[0]).replace("B", "")
            return [first._replace(args=(swapped, *first.args[1:]))]  # libtiff gives the host's byte order
        return self.tile


def _first(value: object) -> int:
    return int(value[0]) if isinstance(value, tuple) else int(value)  # type: ignore[call-overload]


class _Png(PngImagePlugin.PngImageFile):
    """PNG as Pillow has it, but for the colour keys of samples of 2, 4 and 16 bits."""

    def _open(self) -> None:
        super()._open()
        self._key = self.info.get("transparency")
        self._raw = str(self.tile[0].args) if self.tile else ""
        if self._raw in ("RGB;16B", "RGBA;16B", "LA;16B"):
            self.info[DEEP] = True
        if self._key is not None and self._raw in _GREY_LEVELS:
            levels = _GREY_LEVELS[self._raw]
            self.info["transparency"] = self._key % levels * 255 // (levels - 1)
        elif self._key is not None and self.mode in ("L", "RGB") and not self._raw.endswith("16B"):
            low = [key % 256 for key in (self._key if self.mode == "RGB" else [self._key])]
            self.info["transparency"] = tuple(low) if self.mode == "RGB" else low[0]  # the other bits mean nothing

    def load(self) -> Any:
        if not self.tile or self._key is None or self._raw not in ("RGB;16B", "I;16B"):
            return super().load()
        self.info.pop("transparency", None)
        low = self._low_bytes() if self.mode == "RGB" else None
        pixels = super().load()
        if low is None:
            self.info[COLOUR_KEY] = np.asarray(self).astype(np.int32) == self._key
        else:
            values = np.asarray(self).astype(np.int32) * 256 + low
            self.info[COLOUR_KEY] = (values == np.array(self._key)).all(2)
        return pixels

    def load_end(self) -> None:
        with suppress(ValueError):  # excessive notes behind the pixels, which are all there
            super().load_end()

    def _low_bytes(self) -> NDArray[np.uint8]:
        """The half of the samples that Pillow drops: read in the other byte order, it drops the other half."""
        assert self.fp is not None
        place = self.fp.tell()
        self.fp.seek(0)
        other = PngImagePlugin.PngImageFile(self.fp, "")
        other.tile = [one._replace(args="RGB;16L") for one in other.tile]
        low = np.array(other)
        self.fp.seek(place)
        return low


def _open_png(stream: BinaryIO) -> ImageFile.ImageFile:
    """Damaged or excessive notes do not cost the picture."""
    try:
        return _Png(stream, "")
    except (SyntaxError, ValueError):
        stream.seek(0)
        return _Png(io.BytesIO(_without_notes(stream.read())), "")


def _without_notes(content: bytes) -> bytes:
    """A PNG without its ancillary chunks, but for transparency and, if undamaged, EXIF. Raises struct.error."""
    kept, at = [_PNG_START], len(_PNG_START)
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + length]
        is_whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and is_whole):
            kept.append(chunk)
        at += len(chunk)
        if kind == b"IEND":
            break
    return b"".join(kept)
