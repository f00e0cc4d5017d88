"""Odd, damaged and hostile pictures: answered rightly or refused, and the server lives on."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hostile_pictures import chunk, jpeg_of_markers, jpeg_of_scans, png_of_chunks, saved
from PIL import Image
from running_server import Running, form, picture

from sample_tasks import logits
from torchsnow.data import eval_transform, read_image
from torchsnow.data.formats import FORMATS
from torchsnow.data.images import MAX_PIXELS, Cut
from torchsnow.errors import ServingError
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.pictures import Picture, decode
from torchsnow.serving.settings import ServeSettings
from torchsnow.source import Source

CUT = Cut(32, 32, "center", Image.Resampling.BILINEAR)


def sixteen_bit() -> bytes:
    return saved(Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40))


def palette() -> bytes:
    image = Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40) % 7).convert("P")
    return saved(image, transparency=3)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb(width: int = 12_700, height: int = 12_700) -> bytes:
    """A PNG of about half a megabyte that says, truly, that it decodes to half a gigabyte."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD: dict[str, Callable[[], bytes]] = {
    "1x1": lambda: saved(Image.new("RGB", (1, 1), "red")),
    "1x60": lambda: saved(Image.new("RGB", (1, 60), "red")),
    "cmyk": lambda: saved(Image.new("CMYK", (40, 40), (10, 200, 30, 40)), "JPEG"),
    "grey": lambda: picture(mode="L"),
    "1-bit": lambda: picture(mode="1"),
    "16-bit": sixteen_bit,
    "palette with transparency": palette,
    "transparent": lambda: picture(mode="RGBA"),
    "gif": lambda: picture(kind="GIF"),
    "bmp": lambda: picture(kind="BMP"),
    "tiff": lambda: picture(kind="TIFF"),
    "tiff in strips": lambda: saved(Image.new("RGB", (400, 400), "red"), "TIFF", compression="tiff_lzw"),
    "animated webp": lambda: animated("WEBP"),
    "animated png": lambda: animated("PNG"),
}
BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "1x60000": lambda: saved(Image.new("RGB", (1, 60_000))),
    "truncated png": lambda: picture()[:-200],
    "truncated jpeg": lambda: picture(kind="JPEG", size=(200, 200))[:3000],
    "truncated webp": lambda: picture(kind="WEBP")[:400],
    "head only": lambda: picture()[:40],
    "truncated gif": lambda: picture(kind="GIF")[:300],
    "truncated bmp": lambda: picture(kind="BMP")[:300],
    "truncated tiff": lambda: picture(kind="TIFF")[:300],
    "text": lambda: b"http://127.0.0.1/x.png",
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "over the cap": lambda: saved(Image.new("L", (1100, 1000))),
    "lying head": lambda: picture()[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + picture()[24:],
    "thousands of scans": lambda: jpeg_of_scans(10_000),
    "many markers": lambda: jpeg_of_markers(200_000),
    "many chunks": lambda: png_of_chunks(80_000),
    "no pixels": lambda: picture()[:16] + struct.pack(">II", 0, 40) + picture()[24:],
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_odd_pictures_are_answered_rightly(steady: Running, source: Source, make: Callable[[], bytes]) -> None:
    reply = steady.predict([make()], ["b"])
    assert reply.status == 200, reply.body
    task = steady.service.live.hub.task("b")
    pixels = eval_transform(source.input_config, task.framing)(read_image(io.BytesIO(make())))
    expected = logits(source, task, pixels[None])[0].softmax(0).tolist()
    given = reply.json["images"][0]["answers"][0]["probabilities"]
    assert [given[name] for name in task.classes] == pytest.approx(expected, abs=1e-4)


def test_the_first_picture_of_an_animation_is_read() -> None:
    for kind in ("WEBP", "PNG"):
        red = saved(Image.new("RGB", (40, 40), "red"), kind)
        ((first,), (given,)) = (decode(Picture(content, "x"), [CUT], 10**6) for content in (red, animated(kind)))
        assert max(abs(a - b) for a, b in zip(first, given, strict=True)) < 10


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_bad_pictures_are_refused_in_words(steady: Running, make: Callable[[], bytes]) -> None:
    reply = steady.predict([make()])
    assert reply.status in (400, 415, 422), reply.body
    assert set(reply.json) == {"error", "code"}
    assert "Traceback" not in reply.body.decode()
    assert "/" not in reply.json["error"].replace("PNG or WebP", "")
    assert steady.predict([picture()], ["a"]).status == 200


def test_a_bomb_is_told_so_and_the_server_answers(steady: Running) -> None:
    reply = steady.predict([bomb()])
    assert (reply.status, reply.json["code"]) == (422, "bad_image")
    assert "12700 x 12700 pixels are more than" in reply.json["error"]
    assert steady.predict([picture()], ["a"]).status == 200


def test_a_refused_picture_is_named(steady: Running) -> None:
    parts = [("image", picture(), "good.png"), ("image", picture()[:-200], "holiday.png")]
    content, kind = form(parts)
    reply = steady.call("POST", "/predict", content, {"content-type": kind})
    assert reply.status == 422
    assert reply.json["error"].startswith("cannot read the image holiday.png: ")
    body = json.dumps({"images": [base64.b64encode(image).decode() for image in (picture(), b"x" * 20)]})
    reply = steady.call("POST", "/predict", body, {"content-type": "application/json"})
    assert reply.status == 415
    assert reply.json["error"].startswith("the image number 2 is no JPEG or PNG or WEBP")


def test_formats_and_pixels_are_those_of_training_unless_told() -> None:
    assert (ServeSettings().formats, ServeSettings().max_pixels) == (FORMATS, MAX_PIXELS)
    for kind in FORMATS[:6]:
        content = picture(kind=kind)
        assert len(decode(Picture(content, "x"), [CUT], 10**6)) == 1
        others = [name for name in FORMATS if name != kind]
        with pytest.raises(ApiError, match="the image x is no") as refused:
            decode(Picture(content, "x"), [CUT], 10**6, others)
        assert refused.value.status == 415
    for formats in (("JPG",), ("JPEG", "EPS"), ()):
        with pytest.raises(ServingError, match="expected some of JPEG, PNG"):
            ServeSettings(formats=formats)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    content = bomb()
    assert len(content) < 600_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ApiError, match="pixels are more than") as refused:
        decode(Picture(content, "x"), [CUT], 25_000_000)
    assert refused.value.status == 422
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; decoded it is 483 MB
