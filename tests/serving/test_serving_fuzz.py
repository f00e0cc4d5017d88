"""Whatever comes, the answer is no bug in torchsnow, and the server lives."""

from __future__ import annotations

import json
import os
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import BEARER, Running, document_of, form, picture

# A long run: FUZZ_EXAMPLES=1200 python -m pytest tests/serving/test_serving_fuzz.py
EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("aGk="),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.just("image"), "datatype": st.just("BYTES"), "shape": st.lists(VALUES, max_size=2) | VALUES},
    optional={"data": st.lists(VALUES, max_size=2), "parameters": VALUES},
)
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
IMAGES = {kind: picture(kind=kind, size=(24, 20)) for kind in KINDS}
IMAGE = picture()


def alive(server: Running, status: int) -> None:
    assert status < 500
    assert server.call("GET", "/v2/health/live").status == 200


@EXAMPLES
@given(body=st.dictionaries(st.sampled_from(["images", "tasks", "explain", "x"]), VALUES) | VALUES)
def test_any_json_to_predict(sealed: Running, body: Any) -> None:
    """And what the document allows is taken, and nothing else."""
    headers = {**BEARER, "content-type": "application/json"}
    status = sealed.call("POST", "/predict", json.dumps(body), headers).status
    alive(sealed, status)
    operation = document_of(sealed.service)["paths"]["/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == (status not in (400, 413))


@EXAMPLES
@given(
    body=st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=2)}, optional={"outputs": VALUES, "id": VALUES}),
    tail=st.binary(max_size=20),
    length=st.none() | st.integers(-1, 200),
)
def test_any_inference(sealed: Running, body: Any, tail: bytes, length: int | None) -> None:
    headers = dict(BEARER) if length is None else {**BEARER, "inference-header-content-length": str(length)}
    alive(sealed, sealed.call("POST", "/v2/models/a/infer", json.dumps(body).encode() + tail, headers).status)


@EXAMPLES
@given(
    cut=st.integers(0, 400),
    place=st.integers(0, 400),
    noise=st.binary(max_size=6),
    boundary=st.sampled_from(["", "", "", "a", "a" * 400, "%", ";", "=" * 4_000]),
)
def test_any_damage_to_a_form(sealed: Running, cut: int, place: int, noise: bytes, boundary: str) -> None:
    """Or to the boundary that its kind names."""
    content, kind = form([("image", IMAGE[:200], "x.png"), ("task", b"a", None)])
    content = content[: len(content) - cut]
    content = content[:place] + noise + content[place:]
    content = content.replace(b"limit", b"limit" + boundary.encode())
    alive(sealed, sealed.call("POST", "/predict", content, {**BEARER, "content-type": kind + boundary}).status)


@EXAMPLES
@given(
    kind=st.sampled_from(KINDS),
    place=st.integers(0, 2_000),
    noise=st.binary(min_size=1, max_size=8),
    times=st.sampled_from([1, 1, 1, 5_000]),
)
def test_any_damage_to_a_picture(sealed: Running, kind: str, place: int, noise: bytes, times: int) -> None:
    """Bytes of it are others, or there very many times."""
    image = IMAGES[kind]
    put = noise if times == 1 else image[place : place + len(noise)] * times
    damaged = image[:place] + put + image[place + len(noise) :]
    headers = {**BEARER, "content-type": f"image/{kind.lower()}"}
    alive(sealed, sealed.call("POST", "/predict?task=a", damaged, headers).status)


@EXAMPLES
@given(content=st.binary(max_size=200), start=st.sampled_from([b"", b"\x10\0\0\0\0\0\0\0{", b"PK", b"\x80"]))
def test_any_upload(sealed: Running, content: bytes, start: bytes) -> None:
    status = sealed.call("POST", "/admin/tasks", start + content, BEARER).status
    assert status >= 400
    alive(sealed, status)


@EXAMPLES
@given(name=st.binary(min_size=1, max_size=20), method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "BREW"]))
def test_any_address(sealed: Running, name: bytes, method: str) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in name)
    for start in ("/", "/v2/models/", "/admin/tasks/", "/v2/repository/models/"):
        alive(sealed, sealed.call(method, start + escaped, b"", BEARER).status)
