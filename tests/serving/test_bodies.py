"""Bodies are read in time that grows no faster than they do, however they are made."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsnow.serving.bodies import _without_texts, read_asked, strict_json
from torchsnow.serving.refusal import Refusal
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
    with pytest.raises(Refusal) as refused:
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
        with pytest.raises(Refusal, match="not valid JSON"):
            strict_json(hidden.encode(coding), 4)
    with pytest.raises(Refusal, match="not valid JSON"):
        strict_json(b'["\xed\xa0\x80"]', 4)


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b"[NaN]", b"[Infinity]", b"[1e999]", b"{'a': 1}", b"", b"[1] 2"])
def test_odd_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="not valid JSON"):
        strict_json(body, 4)


def test_brackets_in_a_text_are_no_depth() -> None:
    assert strict_json(b'{"a": "[[[[[[\\"[[[[\\\\"}', 1) == {"a": '[[[[[["[[[[\\'}
    with pytest.raises(Refusal, match="more than 2 levels deep"):
        strict_json(b'{"a\\\\": [[]]}', 2)
