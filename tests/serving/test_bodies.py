"""Bodies are read in time that grows no faster than they do, however they are made."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import form, picture

from torchsnow.serving.api_error import ApiError
from torchsnow.serving.asked import _without_texts, from_base64, read_asked, strict_json
from torchsnow.serving.settings import ServeSettings

HOSTILE = {
    "a text without an end, full of quotes": b'{"images": ["' + b'\\"' * 19_000 + b"a" * 62_000,
    "the same, with its last byte an escape": b'{"images": ["' + b'\\"' * 19_000 + b"a" * 62_000 + b"\\",
    "texts without an end": b'"a' * 20_000 + b"\\" * 60_001,
    "escapes alone": b'["' + b"\\\\" * 50_000,
    "keys, and the last occurs twice": b"{" + b",".join(b'"%d":0' % min(i, 9_998) for i in range(10_000)) + b"}",
    "digits": b"[" + b"1" * 65_000 + b"]",
    "a long fraction": b"[0." + b"1" * 65_000 + b"]",
    "brackets": b"[" * 100_000,
}
VALUES: Any = st.recursive(
    st.none() | st.integers() | st.text(alphabet='\\"[]{}a\u2028é', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\{[', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_refused_in_little_time(body: bytes) -> None:
    start_s = time.process_time()
    with pytest.raises(ApiError) as refused:
        read_asked(body, "application/json", ServeSettings())
    assert (refused.value.status, refused.value.code) in ((400, "bad_json"), (400, "bad_request"))
    assert time.process_time() - start_s < 0.5


@given(value=VALUES, ascii_only=st.booleans())
def test_what_stands_between_the_texts_is_all_but_them(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    pieces, inside, escaped = [], False, False
    for byte in body:
        if not inside and byte != ord('"'):
            pieces.append(byte)
        ends = byte == ord('"') and not escaped
        escaped = inside and byte == ord("\\") and not escaped
        inside ^= ends
    assert _without_texts(body) == bytes(pieces)
    assert strict_json(body, max_depth=16) == value


def test_json_is_utf8() -> None:
    assert strict_json('\ufeff{"a": "é"}'.encode(), 4) == {"a": "é"}
    hidden = '["\u0122", ' + "[" * 8 + "]" * 8 + ', "\u0122"]'  # in UTF-16 quotes by the byte, with the brackets inside
    for coding in ("utf-16", "utf-16-le", "utf-32-be"):
        with pytest.raises(ApiError, match="not valid JSON"):
            strict_json(hidden.encode(coding), 4)
    with pytest.raises(ApiError, match="not valid JSON"):
        strict_json(b'["\xed\xa0\x80"]', 4)


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b"[NaN]", b"[Infinity]", b"[1e999]", b"{'a': 1}", b"", b"[1] 2"])
def test_odd_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="not valid JSON"):
        strict_json(body, 4)


def test_brackets_in_a_text_are_no_depth() -> None:
    assert strict_json(b'{"a": "[[[[[[\\"[[[[\\\\"}', 1) == {"a": '[[[[[["[[[[\\'}
    with pytest.raises(ApiError, match="more than 2 levels deep"):
        strict_json(b'{"a\\\\": [[]]}', 2)


CONTENT = bytes(range(256)) * 2 + b"\xfb\xff"
PLAIN = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN + "\n",
        base64.encodebytes(CONTENT).decode(),
        "\r\n".join(PLAIN[i : i + 64] for i in range(0, len(PLAIN), 64)),
        f" {PLAIN}\t",
        base64.urlsafe_b64encode(CONTENT).decode(),
        base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        PLAIN.rstrip("="),
        "data:image/png;base64," + PLAIN,
        "DATA:image/png;name=x.png;BASE64,\n" + base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        "data:;base64," + PLAIN,
        "\n data:image/png;base64," + PLAIN,
        "data:image/png;base64," + quote(PLAIN, safe=""),
    ],
)
def test_base64_of_all_kinds(text: str) -> None:
    assert from_base64(text) == CONTENT


@pytest.mark.parametrize(
    "text", ["a", "aGk=aGk=", "aGk*", "http://x/y.png", "data:image/png,aGk", "data:image/png;base64", "\ud800", "ä"]
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match=r"the image number 3 is .*base64") as refused:
        from_base64(text, 2)
    assert refused.value.status == 422


IMAGE = picture()
BODY, KIND = form([("image", IMAGE, "x.png"), ("task", b"a", None)])


def with_head(head: str) -> bytes:
    return f"--limit\r\n{head}\r\n\r\n".encode() + IMAGE + b"\r\n--limit--\r\n"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (BODY, "x.png"),
        (b"This is a message in several parts.\r\n" + BODY, "x.png"),
        (b"\r\n" + BODY, "x.png"),
        (BODY + b"This is behind it.\r\n--limit\r\nand more", "x.png"),
        (BODY.rstrip(), "x.png"),
        (with_head("Content-Disposition: form-data; name=image; filename=x.png"), "x.png"),
        (
            with_head("content-disposition: form-data; name=\"image\"; filename*=UTF-8''na%C3%AFve%20%2B.png"),
            "naïve +.png",
        ),
        (with_head('content-disposition: form-data; name="image"; filename="a"; filename*=UTF-8\'\'b'), "a"),
        (with_head('content-disposition: form-data; name="image"; filename="na\u00efve.png"'), "naïve.png"),
        (with_head('content-disposition: form-data; name="image"'), None),
        (
            with_head('content-disposition: form-data; filename="x.png"; name="image"\r\ncontent-type: image/png'),
            "x.png",
        ),
    ],
)
def test_forms_of_all_kinds(body: bytes, name: str | None) -> None:
    asked = read_asked(body, KIND, ServeSettings())
    assert asked.image_names == [name]
    assert asked.images[0].content == IMAGE


def test_a_part_in_base64_is_decoded() -> None:
    head = 'content-disposition: form-data; name="image"; filename="x"\r\ncontent-transfer-encoding: base64'
    body = with_head(head).replace(IMAGE, base64.encodebytes(IMAGE))
    assert read_asked(body, KIND, ServeSettings()).images[0].content == IMAGE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--limit--",
        BODY[:-12],
        b"--limit",
        BODY.replace(b'name="image"; ', b""),
        b"x" * 1000,
        b"--limit\r\n" * 500,
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        read_asked(body, KIND, ServeSettings())
    assert refused.value.status == 400


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/WEBP; x=y", "application/octet-stream"])
def test_a_picture_as_it_is(kind: str) -> None:
    asked = read_asked(IMAGE, kind, ServeSettings(), [("task", "a"), ("task", "b"), ("explain", "true")])
    assert (asked.images[0].content, asked.tasks, asked.explain, asked.heat) == (IMAGE, ["a", "b"], True, False)
    assert read_asked(IMAGE, kind, ServeSettings(), [("heat", "true")]).heat
    assert read_asked(IMAGE, kind, ServeSettings()).tasks is None
    for body, query in ((b"", []), (IMAGE, [("tasks", "a")]), (IMAGE, [("explain", "yes")]), (IMAGE, [("heat", "")])):
        with pytest.raises(ApiError) as refused:
            read_asked(body, kind, ServeSettings(), query)
        assert refused.value.status == 400
