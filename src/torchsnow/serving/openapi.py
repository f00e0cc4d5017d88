"""What the addresses take and give, in OpenAPI's words: said where a route is made, which cannot be without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from torchsnow.pages import Page

Schema = Mapping[str, Any]
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
NAMES = {"type": "array", "items": TEXT}
PICTURE = {"type": "string", "format": "binary"}
OF_BODY = (400, 408, 413, 415, 429)
"""What may be wrong with a body."""
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


@dataclass(frozen=True)
class Says:
    """What a route does in a few words, and the schemas of what it takes and gives.

    `body` is by content type, `errors` are the statuses that not every route may have, and `instead` the replies of
    those that are no errors.
    """

    summary: str
    reply: Schema
    kind: str = "application/json"
    status: int = 200
    body: Mapping[str, Schema] = field(default_factory=dict)
    needs_body: bool = True
    parameters: Sequence[Schema] = ()
    errors: Sequence[int] = ()
    instead: Mapping[int, Schema] = field(default_factory=dict)


class Described(Route):
    """A route with what the document says of it."""

    def __init__(self, method: str, path: str, endpoint: Callable[..., Any], says: Says) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.says = method, says


def object_of(optional: Collection[str] = (), **properties: Schema) -> Schema:
    """An object with exactly these values, of which some may be missing."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def list_of(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    """A list of so many values."""
    found = {"type": "array", "items": items}
    return found | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})


def describe(routes: Iterable[Described], has_token: bool, open_paths: Collection[str]) -> dict[str, Any]:
    """The OpenAPI document of all routes; `open_paths` need no token."""
    paths: dict[str, Any] = {}
    for route in routes:
        is_secured = has_token and route.path not in open_paths
        operation = _operation(route.says, re.findall(r"{(\w+)}", route.path), is_secured)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    error = object_of(error=TEXT, code=TEXT)
    components: dict[str, Any] = {"schemas": {"Error": error}}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    info = {"title": "torchsnow", "version": version("torchsnow"), "description": "Many tasks on one source."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def api_page(document: Mapping[str, Any]) -> Response:
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


def _operation(says: Says, in_path: Sequence[str], is_secured: bool) -> dict[str, Any]:
    named = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in in_path]
    parameters, statuses = [*named, *says.parameters], {*says.errors, 500, 503, *([401] if is_secured else [])}
    error = {"$ref": "#/components/schemas/Error"}
    responses = {str(says.status): {"description": "The answer", "content": {says.kind: {"schema": says.reply}}}}
    for status in sorted(statuses):
        content = {"application/json": {"schema": says.instead.get(status, error)}}
        responses[str(status)] = {"description": _ERRORS[status], "content": content}
    operation: dict[str, Any] = {"summary": says.summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if says.body:
        content = {kind: {"schema": schema} for kind, schema in says.body.items()}
        operation["requestBody"] = {"required": says.needs_body, "content": content}
    return operation | ({"security": [{"token": []}]} if is_secured else {})
