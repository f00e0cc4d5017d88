"""The Open Inference Protocol V2: a task is a model, its input pictures, its outputs what it says of them.

The input `image` is of type BYTES: encoded pictures, raw in the binary extension, base64 in JSON. The outputs are
`probabilities` and `logits` (FP32, one row per picture), `label` (BYTES) and, of tasks that know it, `unknown_score`
(FP32, one number per picture). With the parameter `classification`, an
output has the likeliest classes as texts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from torchsnow.serving.answers import Answers, TaskAnswer
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.asked import from_base64, strict_json, validate_count
from torchsnow.serving.openapi import FLAG, NAMES, NUMBER, OF_BODY, TEXT, Described, Says, list_of, object_of
from torchsnow.serving.pictures import Picture, picture
from torchsnow.serving.replies import as_json
from torchsnow.serving.service import DEADLINE, Service, named
from torchsnow.task_file import TaskInfo

HEADER_LENGTH = "inference-header-content-length"
LIVE_PATHS, READY_PATHS = ("/v2/health/live",), ("/v2/health/ready", "/health")
_UNKNOWN = "unknown_score"
_OUTPUTS = {"probabilities": "FP32", "logits": "FP32", "label": "BYTES", _UNKNOWN: "FP32"}
_OF_CLASSES = ("probabilities", "logits")


def routes(service: Service) -> list[Described]:
    """The addresses under /v2."""

    async def server(request: Request) -> Response:
        extensions = ["binary_tensor_data", "classification", "model_repository"]
        return as_json({"name": "torchsnow", "version": version("torchsnow"), "extensions": extensions})

    async def live(request: Request) -> Response:
        return as_json({"live": True})

    async def ready(request: Request) -> Response:
        is_ready = await service.is_ready()
        return as_json({"ready": is_ready}, 200 if is_ready else 503)

    async def model(request: Request) -> Response:
        listed = service.watcher.listed.get(_model(service, request))
        if listed is None:
            raise ApiError(404, "unknown_task", "this model is not ready")
        return as_json(_metadata(listed.entry.sha256, listed.info))

    async def model_ready(request: Request) -> Response:
        name = _model(service, request)
        return as_json({"name": name, "ready": True})

    async def infer(request: Request) -> Response:
        name = _model(service, request)
        length = request.headers.get(HEADER_LENGTH)

        def read(content: bytes) -> Inference:
            return _read(content, length, name, request.path_params.get("version"), service)

        return await service.answer(request, read, _reply, {name})

    async def index(request: Request) -> Response:
        with service.bodies.holding() as read_body:
            content = await read_body(request, 2**16)
        only_ready = _wants_ready(content, service.settings.max_json_depth)
        return as_json([row for row in _index(service) if row["state"] == "READY" or not only_ready])

    found = [
        Described("GET", "/v2", server, Says("The server's name, version and extensions", _SERVER)),
        *(Described("GET", path, live, _OF_LIFE) for path in LIVE_PATHS),
        *(Described("GET", path, ready, _OF_READINESS) for path in READY_PATHS),
        Described("POST", "/v2/repository/index", index, _OF_INDEX),
    ]
    for start in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            Described("GET", start, model, _OF_MODEL),
            Described("GET", f"{start}/ready", model_ready, _OF_MODEL_READY),
            Described("POST", f"{start}/infer", infer, _OF_INFER),
        ]
    return found


_COUNTS, _FREE = {"type": "array", "items": {"type": "integer"}}, {"type": "object"}
_READY = object_of(ready=FLAG)
_OF_LIFE = Says("Whether the server lives", object_of(live=FLAG))
_OF_READINESS = Says("Whether it takes requests", _READY, instead={503: _READY})
_OF_MODEL_READY = Says("Whether a task answers", object_of(name=TEXT, ready=FLAG), errors=(404,))
_SERVER = object_of(name=TEXT, version=TEXT, extensions=NAMES)
_PORT = object_of(name=TEXT, datatype=TEXT, shape=_COUNTS)
_MODEL = object_of(
    name=TEXT,
    versions=NAMES,
    platform=TEXT,
    inputs=list_of(_PORT),
    outputs=list_of(_PORT),
    parameters=object_of(sha256=TEXT),
)
_OF_MODEL = Says("A task's inputs and outputs", _MODEL, errors=(404,))
_STATE = object_of(name=TEXT, version=TEXT, state={**TEXT, "enum": ["READY", "UNAVAILABLE"]}, reason=TEXT)
_OF_INDEX = Says(
    "All models and their states",
    list_of(_STATE),
    body={"application/json": {**_FREE, "properties": {"ready": FLAG}}},
    needs_body=False,
    errors=OF_BODY,
)
# What clients send may have more: the protocol lets them.
_INPUT = {**_FREE, "required": ["name", "datatype", "shape"], "properties": {"name": TEXT, "datatype": TEXT}}
_WANTED = {**_FREE, "required": ["name"], "properties": {"name": TEXT, "parameters": _FREE}}
_REQUEST = {
    **_FREE,
    "required": ["inputs"],
    "properties": {"id": {}, "inputs": list_of(_INPUT, 1, 1), "outputs": list_of(_WANTED)},
}
_OUTPUT = object_of(
    ["data", "parameters"],
    name=TEXT,
    datatype=TEXT,
    shape=_COUNTS,
    data={"type": "array"},
    parameters=object_of(binary_data_size={"type": "integer"}),
)
_OF_INFER = Says(
    "What a task says of pictures: input `image` (BYTES), outputs `probabilities`, `logits`, `label`, `unknown_score`",
    object_of(
        ["id"],
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        outputs=list_of(_OUTPUT),
        parameters=object_of(task=TEXT, version=TEXT, sha256=TEXT, seconds=NUMBER),
    ),
    body={"application/json": _REQUEST},
    parameters=[DEADLINE],
    errors=(*OF_BODY, 404, 409, 422),
)


def _model(service: Service, request: Request) -> str:
    """The task that the address names. Raises ApiError (404) for one that does not answer, or another version."""
    name: str = request.path_params["name"]
    entry = service.live.now.entries.get(name)
    if entry is None or name in service.watcher.unloaded or name in service.watcher.faults:
        raise ApiError(404, "unknown_task", "there is no model of this name, or it cannot be used")
    if request.path_params.get("version", entry.sha256[:12]) not in (entry.sha256[:12], entry.sha256):
        raise ApiError(404, "unknown_version", f"the model has the version {entry.sha256[:12]} and no other")
    return name


def _metadata(sha256: str, info: TaskInfo) -> dict[str, Any]:
    outputs = [
        {"name": output, "datatype": kind, "shape": [-1, len(info.classes)] if output in _OF_CLASSES else [-1]}
        for output, kind in _OUTPUTS.items()
        if output != _UNKNOWN or info.unknown_above is not None
    ]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    return {
        "name": info.name,
        "versions": [sha256[:12]],
        "platform": "torchsnow",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {"sha256": sha256},
    }


def _index(service: Service) -> Iterable[dict[str, str]]:
    faults, unloaded = service.watcher.faults, service.watcher.unloaded
    for name, entry in sorted(service.live.now.entries.items()):
        reason = "its file cannot be used" if name in faults else "unloaded" if name in unloaded else ""
        state = "UNAVAILABLE" if reason else "READY"
        yield {"name": name, "version": entry.sha256[:12], "state": state, "reason": reason}


def _wants_ready(content: bytes, max_depth: int) -> bool:
    values = strict_json(content, max_depth) if content.strip() else {}
    if not isinstance(values, dict) or not isinstance(values.get("ready", False), bool):
        raise ApiError(400, "bad_request", 'send nothing, or {"ready": true}')
    return bool(values.get("ready", False))


@dataclass(frozen=True)
class Inference:
    """A request to one model: pictures, the outputs that are wanted, those of them that go out as bytes, and of how
    many classes, the likeliest first, an output tells instead of its numbers; 0 for the numbers.

    `version` is the only one that may answer, if it is given.
    """

    images: list[Picture]
    tasks: list[str]
    version: str | None
    outputs: dict[str, int]
    binary: frozenset[str]
    id: str | None
    explain: ClassVar[bool] = False  # the protocol has no words for it
    heat: ClassVar[bool] = False


def _read(content: bytes, header_length: str | None, name: str, version: str | None, service: Service) -> Inference:
    end = len(content)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
            raise ApiError(400, "bad_request", f"{header_length[:20]!r} is no length of a header")
        end = min(int(header_length), end)
    values = strict_json(content[:end], service.settings.max_json_depth)
    try:
        images = _images(values, content[end:], service)
        outputs, binary = _wanted(values)
        given_id = values.get("id")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ApiError(
            400,
            "bad_request",
            "expected one input 'image' of datatype BYTES and shape [n], as GET /v2/models/NAME says",
        ) from error
    pictures = [picture(content, None, number) for number, content in enumerate(images)]
    return Inference(pictures, [name], version, outputs, binary, given_id if isinstance(given_id, str) else None)


def _images(values: Any, binary: bytes, service: Service) -> list[bytes]:
    """Raises ApiError, or any error of a value that is missing or of another kind."""
    (tensor,) = values["inputs"]
    if (tensor["name"], tensor["datatype"]) != ("image", "BYTES"):
        raise ValueError
    size = tensor.get("parameters", {}).get("binary_data_size")
    if size is None:
        images = [from_base64(text, number) for number, text in enumerate(tensor["data"])]
    elif size == len(binary):
        images = list(_split(binary))
    else:
        raise ApiError(400, "bad_request", "binary_data_size is not the number of bytes behind the header")
    if [int(extent) for extent in tensor["shape"]] not in ([len(images)], [len(images), 1]) or not images:
        raise ValueError
    validate_count(len(images), service.settings)
    return images


def _split(content: bytes) -> Iterable[bytes]:
    """The elements of a BYTES tensor: each its length (4 bytes, little-endian), then its bytes."""
    start = 0
    while start < len(content):
        if start + 4 > len(content):
            raise ValueError
        (length,) = struct.unpack_from("<I", content, start)
        start += 4 + length
        if start > len(content):
            raise ValueError
        yield content[start - length : start]


def _wanted(values: Any) -> tuple[dict[str, int], frozenset[str]]:
    all_binary = values.get("parameters", {}).get("binary_data_output", False) is True
    wanted = values.get("outputs") or [{"name": name} for name in _OUTPUTS if name != _UNKNOWN]
    names = [output["name"] for output in wanted]
    if len(set(names)) != len(names) or not set(names) <= set(_OUTPUTS):
        raise ApiError(400, "bad_request", f"the outputs are {', '.join(_OUTPUTS)}")
    counts, binary = {}, set()
    for output in wanted:
        parameters, name = output.get("parameters", {}), output["name"]
        counts[name] = parameters.get("classification", 0)
        if type(counts[name]) is not int or counts[name] < 0 or (counts[name] and name not in _OF_CLASSES):
            raise ApiError(400, "bad_request", "'classification' is a number of classes, for probabilities or logits")
        if parameters.get("binary_data", all_binary) is True:
            binary.add(name)
    return counts, frozenset(binary)


def _reply(asked: Inference, answers: Sequence[Answers], seconds: float) -> Response:
    rows = [answer for own in answers for answer in own.values() if isinstance(answer, TaskAnswer)]
    task = rows[0].task
    if asked.version not in (None, task.sha256[:12], task.sha256):
        raise ApiError(404, "unknown_version", "this version was just replaced, or is not loaded yet")
    if _UNKNOWN in asked.outputs and rows[0].unknown_score is None:
        raise ApiError(400, "bad_request", f"this task has no {_UNKNOWN}: its file says no distance for it")
    tail, outputs = b"", []
    for name, num_classes in asked.outputs.items():
        output, content = _output(name, num_classes, rows, name in asked.binary)
        outputs.append(output)
        tail += content
    body: dict[str, Any] = {"model_name": task.name, "model_version": task.sha256[:12], "outputs": outputs}
    body["parameters"] = {**named(task), "seconds": round(seconds, 4)}
    if asked.id is not None:
        body["id"] = asked.id
    if not tail:
        return as_json(body)
    head = json.dumps(body, allow_nan=False).encode()
    return Response(head + tail, headers={HEADER_LENGTH: str(len(head))}, media_type="application/octet-stream")


def _output(name: str, num_classes: int, rows: Sequence[TaskAnswer], binary: bool) -> tuple[dict[str, Any], bytes]:
    if name == "label" or num_classes:
        texts = [_classified(row, name, num_classes) if num_classes else [row.label] for row in rows]
        data: list[Any] = [text for own in texts for text in own]
        encoded = [text.encode("utf-8", "replace") for text in data]
        raw = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
        shape = [len(rows), len(texts[0])] if num_classes else [len(rows)]
        output: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": shape}
    else:
        values = np.array([getattr(row, name) for row in rows], "<f4")
        raw, data = values.tobytes(), values.ravel().tolist()
        output = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
    if binary:
        return {**output, "parameters": {"binary_data_size": len(raw)}}, raw
    return {**output, "data": data}, b""


def _classified(row: TaskAnswer, name: str, num_classes: int) -> list[str]:
    """The likeliest classes in the words of the classification extension: value:number:label."""
    values = getattr(row, name)
    return [f"{float(values[i]):f}:{i}:{row.task.classes[i]}" for i in row.order()[:num_classes]]
