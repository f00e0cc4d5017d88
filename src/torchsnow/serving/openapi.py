"""The server's addresses in OpenAPI's words, and a page for people that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from starlette.responses import HTMLResponse, Response

from torchsnow.pages import Page
from torchsnow.serving.settings import ServeSettings

_TEXT, _NUMBER, _FLAG, _OBJECT = {"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "object"}
_ERRORS = {
    400: "The request is not as described",
    401: "The token is missing or wrong",
    403: "Not under this host name, or from a page of another site",
    404: "There is no such task, or none yet",
    408: "The request did not arrive in time",
    409: "The task is damaged, or the hub was not changed",
    413: "Too large, or too many images",
    415: "Not a picture, or another content type",
    422: "A picture or task file that cannot be used",
    429: "Too many wait; Retry-After says when to come again",
    503: "The server lacks memory, disk or files, or is starting or stopping; Retry-After says when to come again",
    500: "No task that was asked for could answer",
}
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT, "description": "Name of a task"}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": _TEXT, "description": "Its version"}
_EXPLAIN = "Whether the answers have a `lead`: what the likeliest class owes to which tap; takes one more source pass"
_OF_RAW = [
    {"name": name, "in": "query", "schema": schema, "description": "Where the body is a picture"}
    for name, schema in (("task", {"type": "array", "items": _TEXT}), ("explain", _FLAG))
]
_DEADLINE = {
    "name": "x-deadline-s",
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds after which the answer is of no use",
}


def describe(settings: ServeSettings) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "torchsnow", "version": version("torchsnow"), "description": "Many tasks on one source."},
        "paths": {**_own_paths(settings), **_protocol_paths(), **(_admin_paths() if settings.token else {})},
        "components": {"schemas": {"Error": _object(error=_TEXT, code=_TEXT)}},
    }
    if settings.token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def api_page(document: dict[str, Any]) -> Response:
    """The document for people."""
    page = Page("torchsnow: the server's addresses")
    rows = [
        [method.upper(), path, operation["summary"]]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    page.table(["method", "address", "what it does"], rows)
    page.paragraph("For programs: /openapi.json has all of this with every field.")
    style = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(page.html(), headers={"content-security-policy": style})


def _own_paths(settings: ServeSettings) -> dict[str, Any]:
    answer = _object(task=_TEXT, version=_TEXT, sha256=_TEXT, label=_TEXT, ranking=_list(_TEXT), probabilities=_OBJECT)
    failure = _object(task=_TEXT, version=_TEXT, sha256=_TEXT, error=_TEXT, code=_TEXT)
    image = _object(name={"type": ["string", "null"]}, answers=_list(answer), errors=_list(failure))
    picture, task = {"type": "string", "format": "binary"}, {"type": "string", "maxLength": 64}
    form = {"type": "object", "required": ["image"], "additionalProperties": False}
    form |= {
        "properties": {
            "image": _list(picture, settings.max_images, 1),
            "task": _list(task, settings.max_tasks),
            "explain": {"type": "string", "enum": ["true", "false"], "description": _EXPLAIN},
        }
    }
    encoded = {"type": "string", "contentEncoding": "base64"}
    body = {"type": "object", "required": ["images"], "additionalProperties": False}
    body |= {
        "properties": {
            "images": _list(encoded, settings.max_images, 1),
            "tasks": {"anyOf": [_list(task, settings.max_tasks, 1), {"type": "null"}]},
            "explain": {"type": "boolean", "description": _EXPLAIN},
        }
    }
    return {
        "/predict": {
            "post": {
                "summary": "What tasks say of pictures; all tasks unless some are named",
                "parameters": [_DEADLINE, *_OF_RAW],
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {"schema": form},
                        "application/json": {"schema": body},
                        "image/*": {"schema": picture},
                    },
                },
                "responses": _responses(
                    _object(images=_list(image), seconds=_NUMBER), (400, 404, 408, 409, 413, 415, 422, 429, 500, 503)
                ),
            }
        },
        "/tasks": _get("The tasks, with classes, accuracy and dates", _OBJECT),
        "/metrics": _get("Figures for Prometheus", _TEXT, "text/plain"),
        "/openapi.json": _get("This document", _OBJECT),
        "/docs": _get("The addresses, for people", _TEXT, "text/html"),
        "/": _get("A page to try pictures on", _TEXT, "text/html"),
    }


def _protocol_paths() -> dict[str, Any]:
    tensor: dict[str, Any] = {"type": "object", "required": ["name", "datatype", "shape"]}
    tensor |= {"properties": {"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"}), "data": {}}}
    body: dict[str, Any] = {"type": "object", "required": ["inputs"]}
    body |= {"properties": {"id": _TEXT, "inputs": _list(tensor), "outputs": _list(_object(name=_TEXT))}}
    infer = {
        "summary": "What a task says of pictures: input `image` (BYTES), outputs `probabilities`, `logits`, `label`",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses(_OBJECT, (400, 404, 408, 409, 413, 415, 422, 429, 500, 503)),
    }
    index = {
        "summary": "All models and their states",
        "requestBody": {
            "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": _FLAG}}}}
        },
        "responses": _responses({"type": "array"}, (400, 408, 413, 415, 429)),
    }
    paths: dict[str, Any] = {
        "/v2": _get("The server's name, version and extensions", _OBJECT),
        "/v2/health/live": _get("Whether the server lives", _OBJECT),
        "/v2/health/ready": _get("Whether it takes requests", _OBJECT),
        "/health": _get("The same, for those who look here", _OBJECT),
        "/v2/repository/index": {"post": index},
    }
    for start, named in (
        ("/v2/models/{name}", [_NAME]),
        ("/v2/models/{name}/versions/{version}", [_NAME, _VERSION]),
    ):
        paths |= {
            start: _get("A task's inputs and outputs", _OBJECT, parameters=named),
            f"{start}/ready": _get("Whether a task answers", _OBJECT, parameters=named),
            f"{start}/infer": {"post": {**infer, "parameters": [*named, _DEADLINE]}},
        }
    return paths


def _admin_paths() -> dict[str, Any]:
    errors = (400, 403, 404, 408, 409, 413, 415, 422, 429, 503)
    replace = {"name": "replace", "in": "query", "schema": {"type": "string", "enum": ["true", "false"]}}
    file = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

    def change(summary: str, **more: Any) -> dict[str, Any]:
        return {"summary": summary, "parameters": [_NAME], "responses": _responses(_OBJECT, errors), **more}

    added = {**_responses(_OBJECT, errors), "201": {"description": "It answers by now"}}
    upload = change("Add a task file, or replace a task", parameters=[replace], responses=added)
    return {
        "/admin/tasks": {"post": {**upload, "requestBody": {"required": True, "content": file}}},
        "/admin/tasks/{name}": {"delete": change("Remove a task")},
        "/admin/tasks/{name}/rollback": {"post": change("Put a task's former version back")},
        "/v2/repository/models/{name}/load": {"post": change("Offer a task again")},
        "/v2/repository/models/{name}/unload": {"post": change("Offer a task no longer, until it is loaded")},
    }


def _get(summary: str, schema: Any, kind: str = "application/json", parameters: Sequence[Any] = ()) -> dict[str, Any]:
    errors = (404,) if parameters else ()
    operation = {"summary": summary, "responses": _responses(schema, errors, kind)}
    return {"get": {**operation, "parameters": list(parameters)} if parameters else operation}


def _responses(schema: Any, errors: Sequence[int], kind: str = "application/json") -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": "The answer", "content": {kind: {"schema": schema}}}}
    for status in (*errors, 401):
        found[str(status)] = {"description": _ERRORS[status], "content": error}
    return found


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Any, most: int | None = None, least: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array", "items": items}
    return found | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})
